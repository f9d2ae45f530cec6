// Random bits by counting: Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011).
// The value at an index depends only on (seed, call, index), so any thread can compute any part.
#pragma once
#include <cstdint>

namespace bert {

// Four times kLanes values: value[j][i] for the counter `first + i`.
constexpr int kLanes = 16;

static inline __attribute__((always_inline)) void philox(uint64_t seed, uint64_t call, uint64_t first,
                                                         uint32_t value[4][kLanes]) {
  uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t counter = first + i;
    c0[i] = static_cast<uint32_t>(counter);
    c1[i] = static_cast<uint32_t>(counter >> 32);
    c2[i] = static_cast<uint32_t>(call);
    c3[i] = static_cast<uint32_t>(call >> 32);
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * c0[i];
      const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * c2[i];
      const uint32_t high1 = static_cast<uint32_t>(product1 >> 32) ^ c1[i] ^ k0;
      const uint32_t high0 = static_cast<uint32_t>(product0 >> 32) ^ c3[i] ^ k1;
      c0[i] = high1;
      c1[i] = static_cast<uint32_t>(product1);
      c2[i] = high0;
      c3[i] = static_cast<uint32_t>(product0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int i = 0; i < kLanes; ++i) {
    value[0][i] = c0[i];
    value[1][i] = c1[i];
    value[2][i] = c2[i];
    value[3][i] = c3[i];
  }
}

// An element is dropped if its 32 random bits are below this.
static inline uint64_t drop_threshold(float rate) {
  const double scaled = static_cast<double>(rate) * 4294967296.0;
  return scaled <= 0 ? 0 : scaled >= 4294967296.0 ? 4294967296ull : static_cast<uint64_t>(scaled);
}

// Elements [begin, begin + 4 * kLanes) of the mask; begin is a multiple of 4 * kLanes.
static inline __attribute__((always_inline)) void keep_block(uint64_t seed, uint64_t call, uint64_t begin,
                                                             uint64_t threshold, uint8_t keep[4 * kLanes]) {
  uint32_t value[4][kLanes];
  philox(seed, call, begin / 4, value);
  if (threshold > 0xFFFFFFFFull) {
    for (int i = 0; i < 4 * kLanes; ++i) keep[i] = 0;
    return;
  }
  const uint32_t limit = static_cast<uint32_t>(threshold);
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < kLanes; ++i) keep[j * kLanes + i] = value[j][i] >= limit;
  }
}

}  // namespace bert
