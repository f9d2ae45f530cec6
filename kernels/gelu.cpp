#include "kernels.h"
#include "float_math.h"
#include "parallel.h"
#include "row_sums.h"

namespace bert {
namespace {

void gelu_row(int64_t columns, const float* __restrict__ x, const float* __restrict__ bias, float* __restrict__ y) {
  for (int64_t i = 0; i < columns; ++i) {
    const float value = bias != nullptr ? x[i] + bias[i] : x[i];
    float distribution, density;
    normal(value, &distribution, &density);
    y[i] = value * distribution;
  }
}

void gelu_grad_row(int64_t columns, const float* x, const float* bias, const float* dy, float* dx) {
  for (int64_t i = 0; i < columns; ++i) {
    const float value = bias != nullptr ? x[i] + bias[i] : x[i];
    float distribution, density;
    normal(value, &distribution, &density);
    dx[i] = dy[i] * (distribution + value * density);
  }
}

}  // namespace
}  // namespace bert

void bert_gelu(int64_t rows, int64_t columns, const float* x, const float* bias, float* y) {
  bert::parallel_for(rows, bert::rows_per_chunk(columns), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) bert::gelu_row(columns, x + row * columns, bias, y + row * columns);
  });
}

void bert_gelu_grad(int64_t rows, int64_t columns, const float* x, const float* bias, const float* dy, float* dx) {
  bert::parallel_for(rows, bert::rows_per_chunk(columns), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * columns;
      bert::gelu_grad_row(columns, x + at, bias, dy + at, dx + at);
    }
  });
}

void bert_bias_gelu_grad(int64_t rows, int64_t columns, const float* x, const float* bias, const float* dy, float* dx,
                         float* dbias) {
  bert::sum_over_rows<1>(rows, columns, {dbias}, [=](int64_t row, float* const total[1]) {
    const int64_t at = row * columns;
    bert::gelu_grad_row(columns, x + at, bias, dy + at, dx + at);
    for (int64_t i = 0; i < columns; ++i) total[0][i] += dx[at + i];
  });
}
