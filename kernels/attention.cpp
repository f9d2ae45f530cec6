// Self-attention of all heads in one operator. The scores stay in a core's cache, and the heads are read and written in
// place in the [tokens, hidden] arrays.
#include <cmath>
#include <cstring>

#include "float_math.h"
#include "kernels.h"
#include "parallel.h"
#include "product.h"
#include "random.h"
#include "reductions.h"

namespace bert {
namespace {

// Queries per tile of a thread: their scores against 512 keys fill a quarter of the L2 cache.
constexpr int64_t kQueriesPerTile = 128;

constexpr int64_t kBlock = 4 * kLanes;

// One head of one sequence, and the offset of its random bits.
struct Head {
  const BertAttention& shape;
  int64_t sequence, head;

  int64_t offset() const { return sequence * shape.length * shape.hidden() + head * shape.head_size; }
  int64_t rows() const { return (sequence * shape.heads + head) * shape.length; }
};

// probabilities[queries, length] = softmax(scale * query key^T + mask), for the forward and the backward pass.
void probabilities_of(const Head& at, int64_t first, int64_t queries, const float* query, const float* key,
                      const float* mask, float* probabilities) {
  const BertAttention& s = at.shape;
  product(false, true, queries, s.length, s.head_size, s.scale(), query + at.offset() + first * s.hidden(), s.hidden(),
          key + at.offset(), s.hidden(), 0.0f, probabilities, s.length);
  const float* added = mask + at.sequence * s.length;
  for (int64_t i = 0; i < queries; ++i) {
    float* row = probabilities + i * s.length;
    for (int64_t j = 0; j < s.length; ++j) row[j] += added[j];
    const float largest = maximum(s.length, row);
    for (int64_t j = 0; j < s.length; ++j) row[j] = exponential(row[j] - largest);
    const float normaliser = 1.0f / sum<float>(s.length, [=](int64_t j) { return row[j]; });
    for (int64_t j = 0; j < s.length; ++j) row[j] *= normaliser;
  }
}

// Multiplies a row of probabilities or gradients by its part of the dropout mask.
void drop(const Head& at, uint64_t key, int64_t row, float* values) {
  const BertAttention& s = at.shape;
  const uint64_t threshold = drop_threshold(s.rate);
  const float scale = s.rate < 1.0f ? 1.0f / (1.0f - s.rate) : 0.0f;
  const int64_t padded = (s.length + kBlock - 1) / kBlock * kBlock;
  uint8_t keep[kBlock];
  for (int64_t begin = 0; begin < s.length; begin += kBlock) {
    keep_block(key, 0, (at.rows() + row) * padded + begin, threshold, keep);
    float* block = values + begin;
    if (begin + kBlock <= s.length) {
      for (int64_t i = 0; i < kBlock; ++i) block[i] = keep[i] ? block[i] * scale : 0.0f;
    } else {
      for (int64_t i = 0; i < s.length - begin; ++i) block[i] = keep[i] ? block[i] * scale : 0.0f;
    }
  }
}

void attend(const Head& at, int64_t first, const float* query, const float* key, const float* value, const float* mask,
            const int64_t* random, float* out) {
  const BertAttention& s = at.shape;
  const int64_t queries = std::min(kQueriesPerTile, s.length - first);
  float* probabilities = scratch(queries * s.length);
  probabilities_of(at, first, queries, query, key, mask, probabilities);
  if (s.rate > 0.0f) {
    for (int64_t i = 0; i < queries; ++i) {
      drop(at, random[at.sequence * s.length], first + i, probabilities + i * s.length);
    }
  }
  product(false, false, queries, s.head_size, s.length, 1.0f, probabilities, s.length, value + at.offset(), s.hidden(),
          0.0f, out + at.offset() + first * s.hidden(), s.hidden());
}

void attend_grad(const Head& at, const float* dout, const float* query, const float* key, const float* value,
                 const float* mask, const int64_t* random, float* dquery, float* dkey, float* dvalue) {
  const BertAttention& s = at.shape;
  const int64_t hidden = s.hidden(), offset = at.offset();
  const int64_t tile = std::min(kQueriesPerTile, s.length);
  float* probabilities = scratch(2 * tile * s.length);
  float* gradients = probabilities + tile * s.length;
  for (int64_t first = 0; first < s.length; first += tile) {
    const int64_t queries = std::min(tile, s.length - first);
    const int64_t rows = offset + first * hidden;
    const float beta = first == 0 ? 0.0f : 1.0f;
    probabilities_of(at, first, queries, query, key, mask, probabilities);
    product(false, true, queries, s.length, s.head_size, 1.0f, dout + rows, hidden, value + offset, hidden, 0.0f,
            gradients, s.length);
    for (int64_t i = 0; i < queries; ++i) {
      const float* probability = probabilities + i * s.length;
      float* gradient = gradients + i * s.length;
      if (s.rate > 0.0f) drop(at, random[at.sequence * s.length], first + i, gradient);
      // Uses the probabilities computed here, not dout and out. With large scores these differ from the forward pass by
      // rounding, and a zero gradient would become that difference.
      const float dot = sum<float>(s.length, [=](int64_t j) { return probability[j] * gradient[j]; });
      for (int64_t j = 0; j < s.length; ++j) gradient[j] = probability[j] * (gradient[j] - dot) * s.scale();
      if (s.rate > 0.0f) drop(at, random[at.sequence * s.length], first + i, probabilities + i * s.length);
    }
    product(true, false, s.length, s.head_size, queries, 1.0f, probabilities, s.length, dout + rows, hidden, beta,
            dvalue + offset, hidden);
    product(false, false, queries, s.head_size, s.length, 1.0f, gradients, s.length, key + offset, hidden, 0.0f,
            dquery + rows, hidden);
    product(true, false, s.length, s.head_size, queries, 1.0f, gradients, s.length, query + rows, hidden, beta,
            dkey + offset, hidden);
  }
}

}  // namespace
}  // namespace bert

void bert_attention(const BertAttention* shape, const float* query, const float* key, const float* value,
                    const float* mask, const int64_t* random, float* out) {
  const int64_t tiles = (shape->length + bert::kQueriesPerTile - 1) / bert::kQueriesPerTile;
  bert::parallel_chunks(shape->batch * shape->heads * tiles, [=](int64_t chunk) {
    const int64_t index = chunk / tiles;
    const bert::Head at{*shape, index / shape->heads, index % shape->heads};
    bert::attend(at, chunk % tiles * bert::kQueriesPerTile, query, key, value, mask, random, out);
  });
}

void bert_attention_grad(const BertAttention* shape, const float* dout, const float* query, const float* key,
                         const float* value, const float* mask, const int64_t* random, float* dquery, float* dkey,
                         float* dvalue) {
  bert::parallel_chunks(shape->batch * shape->heads, [=](int64_t index) {
    const bert::Head at{*shape, index / shape->heads, index % shape->heads};
    bert::attend_grad(at, dout, query, key, value, mask, random, dquery, dkey, dvalue);
  });
}
