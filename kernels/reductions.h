// Sums over a row in 16 interleaved partial sums. The order of additions is the same with every instruction set, and the
// compiler vectorises them.
#pragma once
#include <cstdint>

namespace bert {

constexpr int kStrands = 16;

template <typename Number>
static inline __attribute__((always_inline)) Number add_strands(const Number strand[kStrands]) {
  Number s[kStrands / 2];
  for (int i = 0; i < 8; ++i) s[i] = strand[i] + strand[i + 8];
  for (int i = 0; i < 4; ++i) s[i] += s[i + 4];
  return (s[0] + s[2]) + (s[1] + s[3]);
}

// The sum of term(i) for i in [0, count).
template <typename Number, typename Term>
static inline __attribute__((always_inline)) Number sum(int64_t count, Term&& term) {
  Number strand[kStrands] = {};
  int64_t i = 0;
  for (; i + kStrands <= count; i += kStrands) {
    for (int j = 0; j < kStrands; ++j) strand[j] += term(i + j);
  }
  for (int j = 0; i + j < count; ++j) strand[j] += term(i + j);
  return add_strands(strand);
}

// Two sums in one pass: term(i, first, second) adds to both.
template <typename Number, typename Term>
static inline __attribute__((always_inline)) void sum_two(int64_t count, Number* first, Number* second, Term&& term) {
  Number a[kStrands] = {}, b[kStrands] = {};
  int64_t i = 0;
  for (; i + kStrands <= count; i += kStrands) {
    for (int j = 0; j < kStrands; ++j) term(i + j, a[j], b[j]);
  }
  for (int j = 0; i + j < count; ++j) term(i + j, a[j], b[j]);
  *first = add_strands(a);
  *second = add_strands(b);
}

// Returns the largest x[i]; ignores NaNs.
static inline __attribute__((always_inline)) float maximum(int64_t count, const float* x) {
  float strand[kStrands];
  for (int j = 0; j < kStrands; ++j) strand[j] = -__builtin_inff();
  int64_t i = 0;
  for (; i + kStrands <= count; i += kStrands) {
    for (int j = 0; j < kStrands; ++j) strand[j] = x[i + j] > strand[j] ? x[i + j] : strand[j];
  }
  for (int j = 0; i + j < count; ++j) strand[j] = x[i + j] > strand[j] ? x[i + j] : strand[j];
  float largest = strand[0];
  for (int j = 1; j < kStrands; ++j) largest = strand[j] > largest ? strand[j] : largest;
  return largest;
}

}  // namespace bert
