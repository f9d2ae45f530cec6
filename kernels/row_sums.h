// Sums over the rows of matrices, for the gradients of biases, gammas and betas.
#pragma once
#include <algorithm>
#include <array>

#include "parallel.h"

namespace bert {

// The number of rows in one partial sum.
constexpr int64_t kRowsPerPart = 64;

// Calls add(row, total) for every row; total[i] are kSums arrays of `columns` elements that start at zero. Writes the sums
// to `sums`, of which any may be null. The order of additions depends only on the number of rows.
template <int kSums, typename Add>
void sum_over_rows(int64_t rows, int64_t columns, std::array<float*, kSums> sums, Add&& add) {
  const int64_t parts = std::max<int64_t>(1, (rows + kRowsPerPart - 1) / kRowsPerPart);
  float* partial = scratch(parts * kSums * columns);
  parallel_chunks(parts, [&](int64_t part) {
    float* total[kSums];
    for (int sum = 0; sum < kSums; ++sum) {
      total[sum] = partial + (part * kSums + sum) * columns;
      std::fill(total[sum], total[sum] + columns, 0.0f);
    }
    const int64_t end = std::min(rows, (part + 1) * kRowsPerPart);
    for (int64_t row = part * kRowsPerPart; row < end; ++row) add(row, total);
  });
  parallel_for(kSums * columns, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t part = 1; part < parts; ++part) {
      const float* from = partial + part * kSums * columns;
      for (int64_t i = begin; i < end; ++i) partial[i] += from[i];
    }
  });
  for (int sum = 0; sum < kSums; ++sum) {
    if (sums[sum] != nullptr) std::copy(partial + sum * columns, partial + (sum + 1) * columns, sums[sum]);
  }
}

}  // namespace bert
