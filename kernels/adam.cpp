#include <cmath>

#include "kernels.h"
#include "parallel.h"

namespace bert {
namespace {

template <bool kMaximum>
void update(int64_t begin, int64_t end, const BertAdam& s, const float* gradient, float* parameter, float* m, float* v,
            float* max_v) {
  const float root = std::sqrt(s.bias_correction2);
  const float step = s.learning_rate / s.bias_correction1;
  const float decay = s.learning_rate * s.weight_decay;
  for (int64_t i = begin; i < end; ++i) {
    const float value = parameter[i];
    const float sign = static_cast<float>((value >= 0.0f) - (value <= 0.0f));
    const float g = gradient[i] * s.gradient_scale + s.l1 * sign + s.l2 * value;
    const float next_m = s.beta1 * m[i] + (1.0f - s.beta1) * g;
    const float next_v = s.beta2 * v[i] + (1.0f - s.beta2) * g * g;
    m[i] = next_m;
    v[i] = next_v;
    float second = next_v;
    if (kMaximum) {
      second = max_v[i] > next_v ? max_v[i] : next_v;
      max_v[i] = second;
    }
    parameter[i] = value - step * (next_m / (std::sqrt(second) / root + s.epsilon)) - decay * value;
  }
}

}  // namespace
}  // namespace bert

void bert_adam(int64_t count, const BertAdam* settings, const float* gradient, float* parameter, float* m, float* v,
               float* max_v) {
  bert::parallel_for(count, bert::kElementsPerChunk, [=](int64_t begin, int64_t end) {
    if (max_v != nullptr) {
      bert::update<true>(begin, end, *settings, gradient, parameter, m, v, max_v);
    } else {
      bert::update<false>(begin, end, *settings, gradient, parameter, m, v, nullptr);
    }
  });
}
