#include <cmath>

#include "kernels.h"
#include "float_math.h"
#include "parallel.h"
#include "reductions.h"

namespace bert {
namespace {

void softmax_row(int64_t columns, const float* x, float* y) {
  const float largest = maximum(columns, x);
  for (int64_t i = 0; i < columns; ++i) y[i] = exponential(x[i] - largest);
  const float scale = 1.0f / sum<float>(columns, [=](int64_t i) { return y[i]; });
  for (int64_t i = 0; i < columns; ++i) y[i] *= scale;
}

void softmax_grad_row(int64_t columns, const float* y, const float* dy, float* dx) {
  const float dot = sum<float>(columns, [=](int64_t i) { return y[i] * dy[i]; });
  for (int64_t i = 0; i < columns; ++i) dx[i] = y[i] * (dy[i] - dot);
}

void log_softmax_row(int64_t columns, const float* x, float* y) {
  const float largest = maximum(columns, x);
  // In double precision: 30,000 terms.
  const double total = sum<double>(
      columns, [=](int64_t i) { return static_cast<double>(exponential(x[i] - largest)); });
  const float logarithm = static_cast<float>(std::log(total));
  for (int64_t i = 0; i < columns; ++i) y[i] = (x[i] - largest) - logarithm;
}

void log_softmax_grad_row(int64_t columns, const float* y, const float* dy, float* dx) {
  const float total =
      static_cast<float>(sum<double>(columns, [=](int64_t i) { return static_cast<double>(dy[i]); }));
  for (int64_t i = 0; i < columns; ++i) dx[i] = dy[i] - exponential(y[i]) * total;
}

template <typename RowFunction>
void for_rows(int64_t rows, int64_t columns, RowFunction&& function) {
  parallel_for(rows, rows_per_chunk(columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) function(row * columns);
  });
}

}  // namespace
}  // namespace bert

void bert_softmax(int64_t rows, int64_t columns, const float* x, float* y) {
  bert::for_rows(rows, columns, [=](int64_t at) { bert::softmax_row(columns, x + at, y + at); });
}

void bert_softmax_grad(int64_t rows, int64_t columns, const float* y, const float* dy, float* dx) {
  bert::for_rows(rows, columns, [=](int64_t at) { bert::softmax_grad_row(columns, y + at, dy + at, dx + at); });
}

void bert_log_softmax(int64_t rows, int64_t columns, const float* x, float* y) {
  bert::for_rows(rows, columns, [=](int64_t at) { bert::log_softmax_row(columns, x + at, y + at); });
}

void bert_log_softmax_grad(int64_t rows, int64_t columns, const float* y, const float* dy, float* dx) {
  bert::for_rows(rows, columns, [=](int64_t at) { bert::log_softmax_grad_row(columns, y + at, dy + at, dx + at); });
}

void bert_cross_entropy_grad(int64_t rows, int64_t columns, const float* log_probability, const int64_t* label,
                             const float* dy, float* dx) {
  bert::parallel_for(rows, bert::rows_per_chunk(columns), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* from = log_probability + row * columns;
      float* to = dx + row * columns;
      const float scale = dy[row];
      const bool has_label = label[row] >= 0 && label[row] < columns;
      // Computed before the row is written, because dx may be log_probability.
      const float at_label = has_label ? scale * (bert::exponential(from[label[row]]) - 1.0f) : 0.0f;
      for (int64_t i = 0; i < columns; ++i) to[i] = scale * bert::exponential(from[i]);
      if (has_label) to[label[row]] = at_label;
    }
  });
}
