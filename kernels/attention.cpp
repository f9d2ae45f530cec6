// Self-attention of all heads in one operator. The scores stay in a core's cache, and the heads are read and written in
// place in the [tokens, hidden] arrays.
#include <cmath>
#include <cstring>

#include "float_math.h"
#include "kernels.h"
#include "packing.h"
#include "parallel.h"
#include "product.h"
#include "random.h"
#include "reductions.h"

namespace bert {
namespace {

// Queries per tile of a thread: their scores against 512 keys fill a quarter of the L2 cache.
constexpr int64_t kQueriesPerTile = 128;

constexpr int64_t kBlock = 4 * kLanes;

// One head of one sequence, whose stored rows are [start, start + length).
struct Head {
  const BertAttention& shape;
  int64_t sequence, head, start, length;

  int64_t offset() const { return start * shape.hidden() + head * shape.head_size; }
  // The number of the first row of the head's probabilities among those of the batch, by which random bits are drawn.
  int64_t first_draw() const { return (sequence * shape.heads + head) * shape.length; }
};

// probabilities[queries, length] = softmax(scale * query key^T + mask), for the forward and the backward pass.
void probabilities_of(const Head& at, int64_t first, int64_t queries, const float* query, const float* key,
                      const float* mask, float* probabilities) {
  const BertAttention& s = at.shape;
  product(false, true, queries, at.length, s.head_size, s.scale(), query + at.offset() + first * s.hidden(), s.hidden(),
          key + at.offset(), s.hidden(), 0.0f, probabilities, at.length);
  const float* added = mask + at.sequence * s.length;
  for (int64_t i = 0; i < queries; ++i) {
    float* row = probabilities + i * at.length;
    for (int64_t j = 0; j < at.length; ++j) row[j] += added[j];
    const float largest = maximum(at.length, row);
    for (int64_t j = 0; j < at.length; ++j) row[j] = exponential(row[j] - largest);
    const float normaliser = 1.0f / sum<float>(at.length, [=](int64_t j) { return row[j]; });
    for (int64_t j = 0; j < at.length; ++j) row[j] *= normaliser;
  }
}

// Multiplies a row of probabilities or gradients by its part of the dropout mask.
void drop(const Head& at, uint64_t key, int64_t row, float* values) {
  const BertAttention& s = at.shape;
  const uint64_t threshold = drop_threshold(s.rate);
  const float scale = s.rate < 1.0f ? 1.0f / (1.0f - s.rate) : 0.0f;
  const int64_t padded = (s.length + kBlock - 1) / kBlock * kBlock;
  uint8_t keep[kBlock];
  for (int64_t begin = 0; begin < at.length; begin += kBlock) {
    keep_block(key, 0, (at.first_draw() + row) * padded + begin, threshold, keep);
    float* block = values + begin;
    if (begin + kBlock <= at.length) {
      for (int64_t i = 0; i < kBlock; ++i) block[i] = keep[i] ? block[i] * scale : 0.0f;
    } else {
      for (int64_t i = 0; i < at.length - begin; ++i) block[i] = keep[i] ? block[i] * scale : 0.0f;
    }
  }
}

void attend(const Head& at, int64_t first, const float* query, const float* key, const float* value, const float* mask,
            const int64_t* random, float* out) {
  const BertAttention& s = at.shape;
  const int64_t queries = std::min(kQueriesPerTile, at.length - first);
  float* probabilities = scratch(queries * at.length);
  probabilities_of(at, first, queries, query, key, mask, probabilities);
  if (s.rate > 0.0f) {
    for (int64_t i = 0; i < queries; ++i) {
      drop(at, random[at.start], first + i, probabilities + i * at.length);
    }
  }
  product(false, false, queries, s.head_size, at.length, 1.0f, probabilities, at.length, value + at.offset(),
          s.hidden(), 0.0f, out + at.offset() + first * s.hidden(), s.hidden());
}

void attend_grad(const Head& at, const float* dout, const float* query, const float* key, const float* value,
                 const float* mask, const int64_t* random, float* dquery, float* dkey, float* dvalue) {
  const BertAttention& s = at.shape;
  const int64_t hidden = s.hidden(), offset = at.offset();
  const int64_t tile = std::min(kQueriesPerTile, at.length);
  float* probabilities = scratch(2 * tile * at.length);
  float* gradients = probabilities + tile * at.length;
  for (int64_t first = 0; first < at.length; first += tile) {
    const int64_t queries = std::min(tile, at.length - first);
    const int64_t rows = offset + first * hidden;
    const float beta = first == 0 ? 0.0f : 1.0f;
    probabilities_of(at, first, queries, query, key, mask, probabilities);
    product(false, true, queries, at.length, s.head_size, 1.0f, dout + rows, hidden, value + offset, hidden, 0.0f,
            gradients, at.length);
    for (int64_t i = 0; i < queries; ++i) {
      const float* probability = probabilities + i * at.length;
      float* gradient = gradients + i * at.length;
      if (s.rate > 0.0f) drop(at, random[at.start], first + i, gradient);
      // Uses the probabilities computed here, not dout and out. With large scores these differ from the forward pass by
      // rounding, and a zero gradient would become that difference.
      const float dot = sum<float>(at.length, [=](int64_t j) { return probability[j] * gradient[j]; });
      for (int64_t j = 0; j < at.length; ++j) gradient[j] = probability[j] * (gradient[j] - dot) * s.scale();
      if (s.rate > 0.0f) drop(at, random[at.start], first + i, probabilities + i * at.length);
    }
    product(true, false, at.length, s.head_size, queries, 1.0f, probabilities, at.length, dout + rows, hidden, beta,
            dvalue + offset, hidden);
    product(false, false, queries, s.head_size, at.length, 1.0f, gradients, at.length, key + offset, hidden, 0.0f,
            dquery + rows, hidden);
    product(true, false, at.length, s.head_size, queries, 1.0f, gradients, at.length, query + rows, hidden, beta,
            dkey + offset, hidden);
  }
}

Head head_at(const BertAttention& shape, const std::vector<int64_t>& starts, int64_t index) {
  const int64_t sequence = index / shape.heads;
  return {shape, sequence, index % shape.heads, starts[sequence], starts[sequence + 1] - starts[sequence]};
}

}  // namespace
}  // namespace bert

void bert_attention(const BertAttention* shape, const float* query, const float* key, const float* value,
                    const float* mask, const int64_t* random, float* out) {
  const int64_t tiles = (shape->length + bert::kQueriesPerTile - 1) / bert::kQueriesPerTile;
  const auto starts = bert::first_rows(shape->batch, shape->length, mask);
  bert::parallel_chunks(shape->batch * shape->heads * tiles, [=, &starts](int64_t chunk) {
    const bert::Head at = bert::head_at(*shape, starts, chunk / tiles);
    const int64_t first = chunk % tiles * bert::kQueriesPerTile;
    if (first < at.length) bert::attend(at, first, query, key, value, mask, random, out);
  });
}

void bert_attention_grad(const BertAttention* shape, const float* dout, const float* query, const float* key,
                         const float* value, const float* mask, const int64_t* random, float* dquery, float* dkey,
                         float* dvalue) {
  const auto starts = bert::first_rows(shape->batch, shape->length, mask);
  bert::parallel_chunks(shape->batch * shape->heads, [=, &starts](int64_t index) {
    const bert::Head at = bert::head_at(*shape, starts, index);
    bert::attend_grad(at, dout, query, key, value, mask, random, dquery, dkey, dvalue);
  });
}
