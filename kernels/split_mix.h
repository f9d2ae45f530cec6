// Random numbers with 64 bits of state: SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
// OOPSLA 2014).
#pragma once
#include <cstdint>

namespace bert {

constexpr uint64_t kSplitMixStep = 0x9E3779B97F4A7C15u;

inline uint64_t split_mix(uint64_t state) {
  state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9u;
  state = (state ^ state >> 27) * 0x94D049BB133111EBu;
  return state ^ state >> 31;
}

inline uint64_t next_random(uint64_t* state) { return split_mix(*state += kSplitMixStep); }

// Returns a number in [0, limit).
inline uint64_t below(uint64_t* state, uint64_t limit) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(next_random(state)) * limit >> 64);
}

// Returns the initial state of stream `index` for a purpose.
inline uint64_t stream_start(uint64_t seed, uint64_t purpose, uint64_t index) {
  return split_mix(split_mix(split_mix(seed + kSplitMixStep) + purpose) + index);
}

}  // namespace bert
