#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "reductions.h"
#include "row_sums.h"

namespace bert {
namespace {

// Mean, variance and deviations are computed in double precision, because the mean of a row may be large.
void normalise_rows(int64_t begin, int64_t end, int64_t columns, double epsilon, const float* x, const float* gamma,
                    const float* beta, float* y, float* mean, float* inverse_deviation) {
  for (int64_t row = begin; row < end; ++row) {
    const float* from = x + row * columns;
    float* to = y + row * columns;
    const double centre = sum<double>(columns, [=](int64_t i) { return static_cast<double>(from[i]); }) / columns;
    const double variance = sum<double>(columns, [=](int64_t i) {
                              const double difference = from[i] - centre;
                              return difference * difference;
                            }) / columns;
    const double scale = 1.0 / std::sqrt(variance + epsilon);
    mean[row] = static_cast<float>(centre);
    inverse_deviation[row] = static_cast<float>(scale);
    for (int64_t i = 0; i < columns; ++i) {
      float value = static_cast<float>((from[i] - centre) * scale);
      if (gamma != nullptr) value *= gamma[i];
      if (beta != nullptr) value += beta[i];
      to[i] = value;
    }
  }
}

void input_gradient_rows(int64_t begin, int64_t end, int64_t columns, const float* dy, const float* x,
                         const float* mean, const float* inverse_deviation, const float* gamma, const float* added,
                         float* dx) {
  for (int64_t row = begin; row < end; ++row) {
    const float* gradient = dy + row * columns;
    const float* from = x + row * columns;
    const float centre = mean[row], scale = inverse_deviation[row];
    float total, projection;
    sum_two<float>(columns, &total, &projection, [=](int64_t i, float& a, float& b) {
      const float g = gamma != nullptr ? gradient[i] * gamma[i] : gradient[i];
      a += g;
      b += g * ((from[i] - centre) * scale);
    });
    total /= columns;
    projection /= columns;
    float* to = dx + row * columns;
    for (int64_t i = 0; i < columns; ++i) {
      const float g = gamma != nullptr ? gradient[i] * gamma[i] : gradient[i];
      const float normalised = (from[i] - centre) * scale;
      float value = scale * (g - total - normalised * projection);
      if (added != nullptr) value += added[row * columns + i];
      to[i] = value;
    }
  }
}

}  // namespace
}  // namespace bert

void bert_layer_norm(int64_t rows, int64_t columns, double epsilon, const float* x, const float* gamma,
                     const float* beta, float* y, float* mean, float* inverse_deviation) {
  bert::parallel_for(rows, bert::rows_per_chunk(columns), [=](int64_t begin, int64_t end) {
    bert::normalise_rows(begin, end, columns, epsilon, x, gamma, beta, y, mean, inverse_deviation);
  });
}

void bert_layer_norm_grad(int64_t rows, int64_t columns, const float* dy, const float* x, const float* mean,
                          const float* inverse_deviation, const float* gamma, const float* added, float* dx) {
  bert::parallel_for(rows, bert::rows_per_chunk(columns), [=](int64_t begin, int64_t end) {
    bert::input_gradient_rows(begin, end, columns, dy, x, mean, inverse_deviation, gamma, added, dx);
  });
}

void bert_layer_norm_param_grad(int64_t rows, int64_t columns, const float* dy, const float* x, const float* mean,
                                const float* inverse_deviation, float* dgamma, float* dbeta) {
  bert::sum_over_rows<2>(rows, columns, {dgamma, dbeta}, [=](int64_t row, float* const total[2]) {
    const float* gradient = dy + row * columns;
    const float* from = x + row * columns;
    const float centre = mean[row], scale = inverse_deviation[row];
    for (int64_t i = 0; i < columns; ++i) {
      total[0][i] += gradient[i] * ((from[i] - centre) * scale);
      total[1][i] += gradient[i];
    }
  });
}
