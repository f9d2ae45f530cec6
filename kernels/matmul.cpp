// Matrix products, by oneDNN. Each thread runs oneDNN's single-threaded product on a block of the result: that is
// faster here than oneDNN's own division (which needs OpenMP's threads beside ours), and the blocks, and with them the
// results, do not depend on the number of threads.
#include <dnnl.h>
#include <dnnl.hpp>
#include <omp.h>

#include <atomic>

#include "float_math.h"
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

std::atomic<bool> bfloat16{false};

// y = scale * x, [rows, columns], rounded to the nearest bfloat16; y has no gaps between its rows.
void to_bfloat16(int64_t rows, int64_t columns, float scale, const float* x, int64_t leading, uint16_t* y) {
  parallel_for(rows, rows_per_chunk(columns), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* from = x + row * leading;
      uint16_t* to = y + row * columns;
      for (int64_t i = 0; i < columns; ++i) {
        const uint32_t bits = as_bits(scale * from[i]);
        const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        // Rounding must not carry a NaN's last bits into its exponent.
        to[i] = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
      }
    }
  });
}

// c[m, n] = op(a) op(b) (+ c) with bfloat16 a and b and float32 sums; as product() otherwise.
void bfloat16_product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const uint16_t* a,
                      int64_t lda, const uint16_t* b, int64_t ldb, bool adds, float* c, int64_t ldc) {
  using dnnl::memory;
  SingleThread single_thread;
  static const dnnl::engine processor(dnnl::engine::kind::cpu, 0);
  thread_local dnnl::stream stream(processor);
  const memory::desc a_layout({m, k}, memory::data_type::bf16,
                              transpose_a ? memory::dims{1, lda} : memory::dims{lda, 1});
  const memory::desc b_layout({k, n}, memory::data_type::bf16,
                              transpose_b ? memory::dims{1, ldb} : memory::dims{ldb, 1});
  const memory::desc c_layout({m, n}, memory::data_type::f32, memory::dims{ldc, 1});
  dnnl::primitive_attr attributes;
  if (adds) {
    dnnl::post_ops sum;
    sum.append_sum();
    attributes.set_post_ops(sum);
  }
  // oneDNN keeps the code that it has made for these shapes.
  const dnnl::matmul product(dnnl::matmul::primitive_desc(processor, a_layout, b_layout, c_layout, attributes));
  product.execute(stream, {{DNNL_ARG_SRC, memory(a_layout, processor, const_cast<uint16_t*>(a))},
                           {DNNL_ARG_WEIGHTS, memory(b_layout, processor, const_cast<uint16_t*>(b))},
                           {DNNL_ARG_DST, memory(c_layout, processor, c)}});
  stream.wait();
}

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
  if (bert::bfloat16 && batch == 1 && m * n * k >= bert::kMinimumWork && (beta == 0.0f || beta == 1.0f)) {
    const int64_t a_rows = transpose_a ? k : m, a_columns = transpose_a ? m : k;
    const int64_t b_rows = transpose_b ? n : k, b_columns = transpose_b ? k : n;
    const int64_t a_size = bert::round_up(a_rows * a_columns, 32);
    auto* narrow_a = reinterpret_cast<uint16_t*>(bert::scratch((a_size + b_rows * b_columns + 1) / 2));
    uint16_t* narrow_b = narrow_a + a_size;
    bert::to_bfloat16(a_rows, a_columns, alpha, a, lda, narrow_a);
    bert::to_bfloat16(b_rows, b_columns, 1.0f, b, ldb, narrow_b);
    bert::parallel_chunks(down * across, [=](int64_t chunk) {
      const int64_t column = chunk % across * columns, row = chunk / across * rows;
      bert::bfloat16_product(transpose_a, transpose_b, std::min(rows, m - row), std::min(columns, n - column), k,
                             narrow_a + (transpose_a ? row : row * a_columns), a_columns,
                             narrow_b + (transpose_b ? column * b_columns : column), b_columns, beta == 1.0f,
                             c + row * ldc + column, ldc);
    });
    return;
  }
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

void bert_set_bfloat16(bool on) { bert::bfloat16 = on; }

void bert_linear(int64_t rows, int64_t inputs, int64_t outputs, const float* x, const float* weight, const float* bias,
                 float* y) {
  bert::parallel_for(rows, bert::rows_per_chunk(outputs), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) std::copy(bias, bias + outputs, y + row * outputs);
  });
  bert_matmul(false, false, 1, rows, outputs, inputs, 1.0f, x, inputs, 0, weight, outputs, 0, 1.0f, y, outputs, 0);
}
