// In every library: what it was built of, for engine/kernel_files.py, which reads it in the file before it is loaded.

#ifndef BERT_BUILD_ID
#define BERT_BUILD_ID "unknown"
#endif

extern "C" {
extern const char bert_build_id[];
__attribute__((used)) const char bert_build_id[] = "bert build id " BERT_BUILD_ID;
}
