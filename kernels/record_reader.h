// Reads the records of a data set without end, in an order that depends on a seed only, from a position that can be
// saved and restored. Plain C functions, no OneFlow here: see kernels.h.
//
// In each epoch a reader reads its share of the parts, one after the other, into a buffer, from which it draws. When all
// are read the buffer is emptied, and the next epoch begins: so each record comes once an epoch. tests/records/test_record_reader.py
// says the same in a few lines of Python.
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

// A record: its serialized bytes, which are valid until the next call, and where they lie.
struct BertRecord {
  const void* data;
  int64_t size;
  int64_t part, offset;
};

struct BertReader;

// Never null; what is wrong is told by the first bert_reader_next. The paths are copied.
BERT_KERNEL BertReader* bert_reader_open(const BertReaderSettings* settings);
BERT_KERNEL void bert_reader_close(BertReader* reader);

// The next record. False if there is none, and never will be: bert_reader_error says why.
BERT_KERNEL bool bert_reader_next(BertReader* reader, BertRecord* record);

// One line, or an empty string. The record at fault is at `offset` of `part`, which is -1 if it is no record's fault.
BERT_KERNEL const char* bert_reader_error(const BertReader* reader, int64_t* part, int64_t* offset);

// Where the reader is, for bert_reader_restore: how many bytes that takes, which are written if `capacity` suffices. It
// is to be asked after every batch, so the checksum at the end is left to bert_reader_seal, for a state that is kept.
BERT_KERNEL int64_t bert_reader_save(const BertReader* reader, void* state, int64_t capacity);
BERT_KERNEL void bert_reader_seal(void* state, int64_t size);

// Makes a reader that has just been opened go on from there. If it is no state, or one of other parts or settings,
// the next record is an error. The seed is the state's.
BERT_KERNEL void bert_reader_restore(BertReader* reader, const void* state, int64_t size);
