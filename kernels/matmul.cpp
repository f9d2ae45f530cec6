// Matrix products, by oneDNN. Each thread runs oneDNN's single-threaded product on a block of the result: that is
// faster here than oneDNN's own division (which needs OpenMP's threads beside ours), and the blocks, and with them the
// results, do not depend on the number of threads.
#include <dnnl.h>
#include <omp.h>

#include "kernels.h"
#include "parallel.h"
#include "product.h"

namespace bert {
namespace {

// Keeps oneDNN on the calling thread.
class SingleThread {
 public:
  SingleThread() : before_(omp_get_max_threads()) {
    if (before_ != 1) omp_set_num_threads(1);
  }
  ~SingleThread() {
    if (before_ != 1) omp_set_num_threads(before_);
  }

 private:
  int before_;
};

// A result smaller than this is not worth a second thread.
constexpr int64_t kMinimumWork = int64_t{1} << 20;
// Blocks of a large product.
constexpr int64_t kBlocks = 4;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

void product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
             int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  if (k == 0) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = beta == 0.0f ? 0.0f : beta * c[i * ldc + j];
    }
    return;
  }
  SingleThread single_thread;
  dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

}  // namespace bert

void bert_matmul(bool transpose_a, bool transpose_b, int64_t batch, int64_t m, int64_t n, int64_t k, float alpha,
                 const float* a, int64_t lda, int64_t stride_a, const float* b, int64_t ldb, int64_t stride_b,
                 float beta, float* c, int64_t ldc, int64_t stride_c) {
  if (batch == 0 || m == 0 || n == 0) return;
  // The longer side of the result is cut, at multiples of what oneDNN's inner kernels take at once.
  int64_t rows = m, columns = n;
  if (m * n * k >= bert::kMinimumWork && batch < 2 * bert::kBlocks) {
    if (n >= m) {
      columns = bert::round_up((n + bert::kBlocks - 1) / bert::kBlocks, 64);
    } else {
      rows = bert::round_up((m + bert::kBlocks - 1) / bert::kBlocks, 48);
    }
  }
  const int64_t across = (n + columns - 1) / columns, down = (m + rows - 1) / rows;
  bert::parallel_chunks(batch * down * across, [=](int64_t chunk) {
    const int64_t column = chunk % across * columns;
    const int64_t row = chunk / across % down * rows;
    const int64_t matrix = chunk / (across * down);
    const float* block_a = a + matrix * stride_a + (transpose_a ? row : row * lda);
    const float* block_b = b + matrix * stride_b + (transpose_b ? column * ldb : column);
    bert::product(transpose_a, transpose_b, std::min(rows, m - row), std::min(columns, n - column), k, alpha, block_a,
                  lda, block_b, ldb, beta, c + matrix * stride_c + row * ldc + column, ldc);
  });
}

void bert_linear(int64_t rows, int64_t inputs, int64_t outputs, const float* x, const float* weight, const float* bias,
                 float* y) {
  bert::parallel_for(rows, bert::rows_per_chunk(outputs), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) std::copy(bias, bias + outputs, y + row * outputs);
  });
  bert_matmul(false, false, 1, rows, outputs, inputs, 1.0f, x, inputs, 0, weight, outputs, 0, 1.0f, y, outputs, 0);
}
