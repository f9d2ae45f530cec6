// Where the sequences of a batch are stored without the padding at their end.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

namespace bert {

// Returns the number of positions of a sequence that are stored: those before the first -infinity in its row of a layout.
inline int64_t stored_length(int64_t length, const float* layout) {
  int64_t stored = 0;
  while (stored < length && !(std::isinf(layout[stored]) && layout[stored] < 0.0f)) ++stored;
  return stored;
}

// Returns the first row of each sequence, and the number of all rows at the end.
inline std::vector<int64_t> first_rows(int64_t batch, int64_t length, const float* layout) {
  std::vector<int64_t> first(batch + 1, 0);
  for (int64_t i = 0; i < batch; ++i) first[i + 1] = first[i] + stored_length(length, layout + i * length);
  return first;
}

}  // namespace bert
