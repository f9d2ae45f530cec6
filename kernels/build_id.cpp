// Stores in every library an id of its sources, which engine/kernel_files.py reads from the file before loading it.

#ifndef BERT_BUILD_ID
#define BERT_BUILD_ID "unknown"
#endif

extern "C" {
extern const char bert_build_id[];
__attribute__((used)) const char bert_build_id[] = "bert build id " BERT_BUILD_ID;
}
