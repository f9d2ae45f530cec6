// One matrix product on the calling thread.
#pragma once
#include <cstdint>

namespace bert {

// c[m, n] = alpha * op(a) op(b) + beta * c; row-major, a transposed operand is stored as its transpose.
void product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
             int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

}  // namespace bert
