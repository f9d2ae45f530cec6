// Matrix products, by oneDNN. Each thread runs oneDNN's single-threaded product on a block of the result: that is
// faster here than oneDNN's own division (which needs OpenMP's threads beside ours), and the blocks, and with them the
// results, do not depend on the number of threads.
#include <dnnl.h>
#include <omp.h>

#include <cstring>

#include "kernels.h"
#include "parallel.h"

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
    bert::SingleThread single_thread;
    const int64_t column = chunk % across * columns;
    const int64_t row = chunk / across % down * rows;
    const int64_t matrix = chunk / (across * down);
    const float* block_a = a + matrix * stride_a + (transpose_a ? row : row * lda);
    const float* block_b = b + matrix * stride_b + (transpose_b ? column * ldb : column);
    float* block_c = c + matrix * stride_c + row * ldc + column;
    const int64_t block_m = std::min(rows, m - row), block_n = std::min(columns, n - column);
    if (k == 0) {
      for (int64_t i = 0; i < block_m; ++i) {
        for (int64_t j = 0; j < block_n; ++j) block_c[i * ldc + j] = beta == 0 ? 0 : beta * block_c[i * ldc + j];
      }
      return;
    }
    dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', block_m, block_n, k, alpha, block_a, lda, block_b,
               ldb, beta, block_c, ldc);
  });
}
