// exp and the normal distribution in float32, written for auto-vectorisation.
#pragma once
#include <cstdint>
#include <cstring>

namespace bert {

static inline __attribute__((always_inline)) float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline __attribute__((always_inline)) uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// e^x to about 1 unit in the last place; 0 and infinity beyond float32's range, NaN for NaN.
static inline __attribute__((always_inline)) float exponential(float x) {
  // Beyond these limits the result is 0 or infinity anyway.
  x = x < -110.0f ? -110.0f : x;
  x = x > 95.0f ? 95.0f : x;
  // x = n ln 2 + r: adding 1.5 * 2^23 rounds to an integer, found in the low bits of the sum.
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 0.00138145379f;
  p = p * r + 0.00836874532f;
  p = p * r + 0.0416683908f;
  p = p * r + 0.166665204f;
  p = p * r + 0.499999934f;
  p = p * (r * r) + r + 1.0f;
  // Multiplies by 2^n in two steps, because n may exceed the range of one exponent.
  const uint32_t whole = as_bits(shifted) - as_bits(12582912.0f);
  const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(whole) >> 1);
  return p * as_float((half + 127) << 23) * as_float((whole - half + 127) << 23);
}

// The standard normal distribution function at x, and its density: Phi(x) = 0.5 erfc(-x / sqrt 2), from
// erfc(z) = e^(-z^2) times a polynomial in 1 / (1 + 0.32 sqrt(2) z), fitted to a relative error of 3.3e-8.
static inline __attribute__((always_inline)) void normal(float x, float* distribution, float* density) {
  const float e = exponential(-0.5f * x * x);
  const float magnitude = as_float(as_bits(x) & 0x7fffffff);
  const float t = 1.0f / (1.0f + 0.32f * magnitude);
  float p = -0.0210784124f;
  p = p * t + 0.0954083638f;
  p = p * t + -0.146709549f;
  p = p * t + 0.0653301522f;
  p = p * t + -0.00937882519f;
  p = p * t + 0.0586543923f;
  p = p * t + 0.0878290222f;
  p = p * t + 0.114622364f;
  p = p * t + 0.127660947f;
  p = p * t + 0.127661529f;
  const float tail = e * (p * t);
  *distribution = x > 0.0f ? 1.0f - tail : tail;
  *density = 0.398942280f * e;
}

}  // namespace bert
