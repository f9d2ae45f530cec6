// Reads the records of a data set endlessly, in an order that depends only on a seed, from a position that can be saved
// and restored. Plain C functions without OneFlow; see kernels.h.
//
// In each epoch a reader reads its share of the parts sequentially into a buffer and draws records from it at random. At
// the end of the epoch it empties the buffer, so each record is read once per epoch. tests/records/test_record_reader.py
// has the same algorithm in a few lines of Python.
#pragma once
#include "kernels.h"

struct BertReaderSettings {
  int64_t parts;
  const char* const* paths;
  uint64_t seed;
  int64_t readers, reader;  // this is number `reader` of `readers`, among whom the parts are shared out
  int64_t buffer_size;      // records to draw from; 1: no shuffling
  bool reorders_parts;      // after every epoch, the same on all readers
};

// A record: its serialized bytes, valid until the next call, and its place.
struct BertRecord {
  const void* data;
  int64_t size;
  int64_t part, offset;
};

struct BertReader;

// Never null: errors are reported by the first bert_reader_next. Copies the paths.
BERT_KERNEL BertReader* bert_reader_open(const BertReaderSettings* settings);
BERT_KERNEL void bert_reader_close(BertReader* reader);

// Reads the next record. Returns false on an error, which is permanent; bert_reader_error has the reason.
BERT_KERNEL bool bert_reader_next(BertReader* reader, BertRecord* record);

// Returns the error in one line, or an empty string. `part` and `offset` give the record; `part` is -1 if none caused it.
BERT_KERNEL const char* bert_reader_error(const BertReader* reader, int64_t* part, int64_t* offset);

// Writes the position, for bert_reader_restore, if `capacity` suffices. Returns its size. As this is called after every
// batch, the checksum at the end is left to bert_reader_seal, for a state that is kept.
BERT_KERNEL int64_t bert_reader_save(const BertReader* reader, void* state, int64_t capacity);
BERT_KERNEL void bert_reader_seal(void* state, int64_t size);

// Sets the position of a reader that has just been opened; the seed is that of the state. If the state is damaged, or
// belongs to other parts or settings, the next read fails.
BERT_KERNEL void bert_reader_restore(BertReader* reader, const void* state, int64_t size);
