// The end of both halves of a layer: bias, dropout, residual and LayerNorm in one pass over memory.
#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "random.h"
#include "reductions.h"
#include "row_sums.h"

namespace bert {
namespace {

constexpr int64_t kBlock = 4 * kLanes;

// Calls use(i, keep) for the elements of a row; `keep` is the dropout factor.
template <typename Use>
inline __attribute__((always_inline)) void with_dropout(float rate, uint64_t key, int64_t row, int64_t columns,
                                                        Use&& use) {
  if (rate <= 0.0f) {
    for (int64_t i = 0; i < columns; ++i) use(i, 1.0f);
    return;
  }
  const uint64_t threshold = drop_threshold(rate);
  const float scale = rate < 1.0f ? 1.0f / (1.0f - rate) : 0.0f;
  const int64_t padded = (columns + kBlock - 1) / kBlock * kBlock;
  uint8_t keep[kBlock];
  for (int64_t begin = 0; begin < columns; begin += kBlock) {
    keep_block(key, 0, row * padded + begin, threshold, keep);
    if (begin + kBlock <= columns) {
      for (int64_t i = 0; i < kBlock; ++i) use(begin + i, keep[i] ? scale : 0.0f);
    } else {
      for (int64_t i = 0; i < columns - begin; ++i) use(begin + i, keep[i] ? scale : 0.0f);
    }
  }
}

}  // namespace
}  // namespace bert

void bert_residual_norm(int64_t rows, int64_t columns, float rate, double epsilon, const float* x, const float* bias,
                        const float* residual, const float* gamma, const float* beta, const int64_t* random,
                        const int64_t* places, float* y, float* normalised, float* inverse_deviation) {
  bert::parallel_for(rows, bert::rows_per_chunk(columns), [=](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const float* from = x + row * columns;
      const float* kept = residual + row * columns;
      float* n = normalised + row * columns;
      float* to = y + row * columns;
      bert::with_dropout(rate, rate > 0.0f ? random[row] : 0, places != nullptr ? places[row] : row, columns,
                         [=](int64_t i, float keep) { n[i] = (from[i] + bias[i]) * keep + kept[i]; });
      const double mean = bert::sum<double>(columns, [=](int64_t i) { return static_cast<double>(n[i]); }) / columns;
      const double variance = bert::sum<double>(columns, [=](int64_t i) {
                                const double difference = n[i] - mean;
                                return difference * difference;
                              }) / columns;
      const double scale = 1.0 / std::sqrt(variance + epsilon);
      inverse_deviation[row] = static_cast<float>(scale);
      for (int64_t i = 0; i < columns; ++i) {
        n[i] = static_cast<float>((n[i] - mean) * scale);
        to[i] = n[i] * gamma[i] + beta[i];
      }
    }
  });
}

void bert_residual_norm_grad(int64_t rows, int64_t columns, float rate, const float* dy, const float* normalised,
                             const float* inverse_deviation, const float* gamma, const int64_t* random,
                             const int64_t* places, float* dx, float* dresidual, float* dbias, float* dgamma,
                             float* dbeta) {
  bert::sum_over_rows<3>(rows, columns, {dbias, dgamma, dbeta}, [=](int64_t row, float* const total[3]) {
    const float* gradient = dy + row * columns;
    const float* n = normalised + row * columns;
    float* to_x = dx + row * columns;
    float* to_residual = dresidual + row * columns;
    float mean, projection;
    bert::sum_two<float>(columns, &mean, &projection, [=](int64_t i, float& a, float& b) {
      const float g = gradient[i] * gamma[i];
      a += g;
      b += g * n[i];
    });
    mean /= columns;
    projection /= columns;
    const float scale = inverse_deviation[row];
    float* bias_sum = total[0];
    float* gamma_sum = total[1];
    float* beta_sum = total[2];
    bert::with_dropout(rate, rate > 0.0f ? random[row] : 0, places != nullptr ? places[row] : row, columns, [=](int64_t i, float keep) {
      const float d = scale * (gradient[i] * gamma[i] - mean - n[i] * projection);
      to_residual[i] = d;
      to_x[i] = d * keep;
      bias_sum[i] += d * keep;
      gamma_sum[i] += gradient[i] * n[i];
      beta_sum[i] += gradient[i];
    });
  });
}
