// x weight (+ bias) with both operands rounded to integers of 8 bits.
//
// A row of x is rounded to 0..255, so that its smallest value and its largest, or zero, are at the ends: what GELU returns is
// hardly ever negative. Weights are signed, with one step for a column. Without VNNI a processor adds the products of rows
// 2 l and 2 l + 1 of the weight in 16 bits, and saturates. So the steps are such that the sum of two such weights is within
// -128..128: 255 * 128 fits. It is the same with VNNI, so that a model is as exact on every processor.
#include <cmath>
#include <limits>
#include <vector>

#include "float_math.h"
#include "kernels.h"
#include "parallel.h"
#include "product.h"

struct BertInt8Weight {
  int64_t inputs, outputs;
  std::vector<int8_t> integers;  // [inputs, outputs]
  std::vector<float> steps;      // of the columns
  std::vector<int32_t> sums;     // of the integers of each column
};

namespace bert {
namespace {

constexpr float kMostActivation = 255.0f, kMostWeight = 127.0f;
// A float to which this is added has in its low bits what it was, rounded to the nearest integer.
constexpr float kRound = 12582912.0f;
// The step of a smaller range would have no inverse.
constexpr float kSmallestRange = 1e-36f;

// How values are rounded: to integers from zero, which stands for 0.0, of `step` each.
struct Scale {
  float step, inverse;
};

// Returns the scale on which `range` has `most` steps. If it is not finite, the step is NaN.
Scale scale_of(float range, float most) {
  if (!std::isfinite(range)) return {std::numeric_limits<float>::quiet_NaN(), 0.0f};
  if (range < kSmallestRange) return {0.0f, 0.0f};
  return {range / most, most / range};
}

// Returns an integer for the bits of a float and back, in the order of the floats. NaNs are at the ends.
inline int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

struct RoundedRow {
  float step;
  int32_t zero;  // the integer of 0.0
};

RoundedRow round_row(int64_t columns, const float* x, uint8_t* integers) {
  int32_t least = 0, most = 0;
  for (int64_t i = 0; i < columns; ++i) {
    const int32_t place = ordered(static_cast<int32_t>(as_bits(x[i])));
    least = std::min(least, place);
    most = std::max(most, place);
  }
  const float low = as_float(ordered(least));
  const Scale scale = scale_of(as_float(ordered(most)) - low, kMostActivation);
  // In a row that is not finite, whose results are NaN by its step, it is NaN and no integer.
  const float zero = scale.inverse > 0.0f ? std::nearbyint(-low * scale.inverse) : 0.0f;
  for (int64_t i = 0; i < columns; ++i) {
    float rounded = x[i] * scale.inverse + (kRound + zero);
    rounded = rounded > kRound ? rounded : kRound;
    rounded = rounded < kRound + kMostActivation ? rounded : kRound + kMostActivation;
    integers[i] = static_cast<uint8_t>(as_bits(rounded));
  }
  return {scale.step, static_cast<int32_t>(zero)};
}

void round_weight(int64_t inputs, int64_t outputs, const float* weight, BertInt8Weight* rounded) {
  // The bits of magnitudes are in the order of these, NaN last.
  std::vector<uint32_t> largest(outputs);
  const auto include = [&](int64_t column, float value) {
    largest[column] = std::max(largest[column], as_bits(value) & 0x7fffffff);
  };
  for (int64_t i = 0; i < inputs; ++i) {
    const float* row = weight + i * outputs;
    for (int64_t j = 0; j < outputs; ++j) include(j, row[j]);
    if (i % 2 == 0) continue;
    for (int64_t j = 0; j < outputs; ++j) include(j, row[j - outputs] + row[j]);
  }
  std::vector<float> inverses(outputs);
  for (int64_t j = 0; j < outputs; ++j) {
    const Scale scale = scale_of(as_float(largest[j]), kMostWeight);
    rounded->steps[j] = scale.step;
    inverses[j] = scale.inverse;
  }
  for (int64_t i = 0; i < inputs; ++i) {
    for (int64_t j = 0; j < outputs; ++j) {
      const auto integer = static_cast<int8_t>(as_bits(weight[i * outputs + j] * inverses[j] + kRound));
      rounded->integers[i * outputs + j] = integer;
      rounded->sums[j] += integer;
    }
  }
}

}  // namespace
}  // namespace bert

BertInt8Weight* bert_round_to_int8(int64_t inputs, int64_t outputs, const float* weight) {
  auto* rounded = new BertInt8Weight{inputs, outputs, std::vector<int8_t>(inputs * outputs),
                                     std::vector<float>(outputs), std::vector<int32_t>(outputs)};
  bert::round_weight(inputs, outputs, weight, rounded);
  return rounded;
}

void bert_free_int8(BertInt8Weight* weight) { delete weight; }

void bert_int8_linear(int64_t rows, const float* x, const BertInt8Weight* weight, const float* bias, float* y) {
  using bert::RoundedRow;
  const int64_t inputs = weight->inputs, outputs = weight->outputs;
  if (rows == 0 || outputs == 0) return;
  const int64_t bytes = rows * (sizeof(RoundedRow) + inputs);
  auto* scales = reinterpret_cast<RoundedRow*>(bert::scratch((bytes + 3) / 4));
  auto* integers = reinterpret_cast<uint8_t*>(scales + rows);
  bert::parallel_for(rows, bert::rows_per_chunk(inputs), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      scales[row] = bert::round_row(inputs, x + row * inputs, integers + row * inputs);
    }
  });
  const bert::Blocks blocks = bert::blocks_of(rows, outputs, inputs);
  bert::parallel_chunks(blocks.count(), [=](int64_t chunk) {
    const bert::Block block = blocks[chunk];
    // The integers of the product are where its floats will be.
    float* part = y + block.row * outputs + block.column;
    bert::int8_product(block.rows, block.columns, inputs, integers + block.row * inputs, inputs,
                       weight->integers.data() + block.column, outputs, reinterpret_cast<int32_t*>(part), outputs);
    const float* steps = weight->steps.data() + block.column;
    const int32_t* sums = weight->sums.data() + block.column;
    for (int64_t i = 0; i < block.rows; ++i) {
      const RoundedRow scale = scales[block.row + i];
      float* row = part + i * outputs;
      for (int64_t j = 0; j < block.columns; ++j) {
        const int32_t sum = static_cast<int32_t>(bert::as_bits(row[j])) - scale.zero * sums[j];
        row[j] = static_cast<float>(sum) * (scale.step * steps[j]) + (bias == nullptr ? 0.0f : bias[block.column + j]);
      }
    }
  });
}
