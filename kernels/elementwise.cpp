#include <cstring>

#include "kernels.h"
#include "parallel.h"
#include "reductions.h"
#include "row_sums.h"

namespace {

constexpr int64_t kTerms = 65536;

}  // namespace

void bert_add_n(int64_t count, int inputs, const float* const* x, float* y) {
  bert::parallel_for(count, bert::kElementsPerChunk, [=](int64_t begin, int64_t end) {
    if (inputs == 1) {
      if (y != x[0]) std::memcpy(y + begin, x[0] + begin, (end - begin) * sizeof(float));
      return;
    }
    const float *first = x[0], *second = x[1];
    for (int64_t i = begin; i < end; ++i) y[i] = first[i] + second[i];
    for (int input = 2; input < inputs; ++input) {
      const float* next = x[input];
      for (int64_t i = begin; i < end; ++i) y[i] += next[i];
    }
  });
}

void bert_bias_add(int64_t rows, int64_t columns, const float* x, const float* bias, float* y) {
  bert::parallel_for(rows, bert::rows_per_chunk(columns), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* from = x + row * columns;
      float* to = y + row * columns;
      for (int64_t i = 0; i < columns; ++i) to[i] = from[i] + bias[i];
    }
  });
}

void bert_sum_rows(int64_t rows, int64_t columns, const float* x, float* y) {
  bert::sum_over_rows<1>(rows, columns, {y}, [=](int64_t row, float* const total[1]) {
    const float* from = x + row * columns;
    for (int64_t i = 0; i < columns; ++i) total[0][i] += from[i];
  });
}

double bert_sum_of_squares(int64_t count, const float* x) {
  const int64_t parts = (count + kTerms - 1) / kTerms;
  double* partial = reinterpret_cast<double*>(bert::scratch(2 * parts));
  bert::parallel_for(count, kTerms, [=](int64_t begin, int64_t end) {
    partial[begin / kTerms] = bert::sum<double>(end - begin, [=](int64_t i) {
      const double value = x[begin + i];
      return value * value;
    });
  });
  double total = 0.0;
  for (int64_t part = 0; part < parts; ++part) total += partial[part];
  return total;
}

void bert_swap_middle(int64_t a, int64_t b, int64_t c, int64_t d, const float* x, float* y) {
  bert::parallel_for(a * c, bert::rows_per_chunk(b * d), [=](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t i = index / c, k = index % c;
      float* to = y + index * b * d;
      const float* from = x + (i * b * c + k) * d;
      for (int64_t j = 0; j < b; ++j) std::memcpy(to + j * d, from + j * c * d, d * sizeof(float));
    }
  });
}
