// Sequences one after the other, without the padding at their end.
#include "packing.h"

#include <algorithm>
#include <limits>

#include "kernels.h"
#include "parallel.h"

namespace {

// The score of a hole, as operators.attention_mask() has it.
constexpr float kHole = -10000.0f;

}  // namespace

void bert_layout(int64_t batch, int64_t length, const float* input_mask, float* layout) {
  for (int64_t i = 0; i < batch; ++i) {
    const float* mask = input_mask + i * length;
    float* row = layout + i * length;
    int64_t stored = length;
    while (stored > 0 && mask[stored - 1] == 0.0f) --stored;
    if (stored == 0) stored = length;
    for (int64_t j = 0; j < stored; ++j) row[j] = mask[j] == 0.0f ? kHole : 0.0f;
    std::fill(row + stored, row + length, -std::numeric_limits<float>::infinity());
  }
}

int64_t bert_stored_rows(int64_t batch, int64_t length, const float* layout, int64_t* places) {
  int64_t rows = 0;
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t stored = bert::stored_length(length, layout + i * length);
    if (places != nullptr) {
      for (int64_t j = 0; j < stored; ++j) places[rows + j] = i * length + j;
    }
    rows += stored;
  }
  return rows;
}

void bert_pack(int64_t batch, int64_t length, int64_t columns, const float* layout, const float* x, float* y) {
  const auto first = bert::first_rows(batch, length, layout);
  bert::parallel_chunks(batch, [&, columns](int64_t i) {
    const float* from = x + i * length * columns;
    std::copy(from, from + (first[i + 1] - first[i]) * columns, y + first[i] * columns);
  });
}

void bert_unpack(int64_t batch, int64_t length, int64_t columns, const float* layout, const float* x, float* y) {
  const auto first = bert::first_rows(batch, length, layout);
  bert::parallel_chunks(batch, [&, columns](int64_t i) {
    float* to = y + i * length * columns;
    float* end = std::copy(x + first[i] * columns, x + first[i + 1] * columns, to);
    std::fill(end, to + length * columns, 0.0f);
  });
}
