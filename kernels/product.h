// One matrix product on the calling thread, and how the threads share a product.
#pragma once
#include <algorithm>
#include <cstdint>

namespace bert {

// c[m, n] = alpha * op(a) op(b) + beta * c; row-major, a transposed operand is stored as its transpose.
void product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
             int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

// c[m, n] = a b, in integers. Without VNNI oneDNN adds a[i, 2 l] b[2 l, j] and a[i, 2 l + 1] b[2 l + 1, j] in 16 bits, where
// their sum must fit.
void int8_product(int64_t m, int64_t n, int64_t k, const uint8_t* a, int64_t lda, const int8_t* b, int64_t ldb,
                  int32_t* c, int64_t ldc);

// A part of the result of a product, which one thread computes.
struct Block {
  int64_t row, column, rows, columns;
};

// How a result [m, n] is divided into blocks of at most `rows` and `columns`.
struct Blocks {
  int64_t m, n, rows, columns;

  int64_t across() const { return (n + columns - 1) / columns; }
  int64_t count() const { return (m + rows - 1) / rows * across(); }
  Block operator[](int64_t index) const {
    const int64_t row = index / across() * rows, column = index % across() * columns;
    return {row, column, std::min(rows, m - row), std::min(columns, n - column)};
  }
};

// The blocks of a product of [m, k] and [k, n]. They do not depend on the number of threads.
Blocks blocks_of(int64_t m, int64_t n, int64_t k);

}  // namespace bert
