#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "reductions.h"

namespace bert {
namespace {

// Squares of so many numbers are added in float32, their sums in float64. Their steps stay in the first cache.
constexpr int64_t kBlock = 256;
static_assert(kElementsPerChunk % kBlock == 0);

// The step that the moments say, with decay: what learning rate and trust ratio scale.
struct Direction {
  explicit Direction(const BertAdam& s)
      : correction1(1.0f / s.bias_correction1),
        correction2(1.0f / std::sqrt(s.bias_correction2)),
        epsilon(s.epsilon),
        decay(s.weight_decay) {}

  float operator()(float value, float m, float v) const {
    return m * correction1 / (std::sqrt(v) * correction2 + epsilon) + decay * value;
  }

  const float correction1, correction2, epsilon, decay;
};

void update_moments(int64_t count, const BertAdam& s, const Direction direction, const float* __restrict__ gradient,
                    const float* __restrict__ parameter, float* __restrict__ m, float* __restrict__ v,
                    float* __restrict__ step) {
  const float beta1 = s.beta1, beta2 = s.beta2, rest1 = 1.0f - beta1, rest2 = 1.0f - beta2, scale = s.gradient_scale;
  for (int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * scale;
    const float next_m = beta1 * m[i] + rest1 * g;
    const float next_v = beta2 * v[i] + rest2 * g * g;
    m[i] = next_m;
    v[i] = next_v;
    step[i] = direction(parameter[i], next_m, next_v);
  }
}

void take_steps(int64_t count, const Direction direction, float rate, const float* __restrict__ m,
                const float* __restrict__ v, float* __restrict__ parameter) {
  for (int64_t i = 0; i < count; ++i) parameter[i] -= rate * direction(parameter[i], m[i], v[i]);
}

}  // namespace
}  // namespace bert

void bert_lamb(int64_t count, const BertAdam* settings, const float* gradient, float* parameter, float* m, float* v) {
  const bert::Direction direction(*settings);
  const float rate = settings->learning_rate;
  const bool has_ratio = settings->weight_decay != 0.0f;
  const int64_t chunks = (count + bert::kElementsPerChunk - 1) / bert::kElementsPerChunk;
  double* sums = reinterpret_cast<double*>(bert::scratch(4 * chunks));
  bert::parallel_chunks(chunks, [=](int64_t chunk) {
    float step[bert::kBlock];
    double of_parameters = 0.0, of_steps = 0.0;
    const int64_t chunk_end = std::min((chunk + 1) * bert::kElementsPerChunk, count);
    for (int64_t begin = chunk * bert::kElementsPerChunk; begin < chunk_end; begin += bert::kBlock) {
      const int64_t size = std::min(bert::kBlock, chunk_end - begin);
      float* p = parameter + begin;
      bert::update_moments(size, *settings, direction, gradient + begin, p, m + begin, v + begin, step);
      if (has_ratio) {
        of_parameters += bert::sum<float>(size, [p](int64_t i) { return p[i] * p[i]; });
        of_steps += bert::sum<float>(size, [&step](int64_t i) { return step[i] * step[i]; });
      } else {
        for (int64_t i = 0; i < size; ++i) p[i] -= rate * step[i];
      }
    }
    sums[2 * chunk] = of_parameters;
    sums[2 * chunk + 1] = of_steps;
  });
  if (!has_ratio) return;
  double of_parameters = 0.0, of_steps = 0.0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    of_parameters += sums[2 * chunk];
    of_steps += sums[2 * chunk + 1];
  }
  const double ratio = of_parameters > 0.0 && of_steps > 0.0 ? std::sqrt(of_parameters / of_steps) : 1.0;
  const float scaled_rate = static_cast<float>(rate * ratio);
  // The steps are computed again: memory for them costs more. Backwards: the end is what the cache still holds.
  bert::parallel_chunks(chunks, [=](int64_t chunk) {
    const int64_t begin = (chunks - 1 - chunk) * bert::kElementsPerChunk;
    bert::take_steps(std::min(bert::kElementsPerChunk, count - begin), direction, scaled_rate, m + begin, v + begin,
                     parameter + begin);
  });
}
