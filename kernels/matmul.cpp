// Matrix products by oneDNN. Each thread computes a block of the result with oneDNN's single-threaded product. This is
// faster here than oneDNN's own partition, which needs OpenMP threads beside ours, and the blocks, and so the results, do
// not depend on the number of threads.
#include <dnnl.h>
#include <dnnl.hpp>
#include <dnnl_debug.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "float_math.h"
#include "kernels.h"
#include "parallel.h"
#include "product.h"

// From GNU OpenMP, which oneDNN uses. Only g++ provides its header.
extern "C" int omp_get_max_threads();
extern "C" void omp_set_num_threads(int count);

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

// Aborts: there is no result, and a pool thread cannot report an error.
[[noreturn]] void give_up(dnnl_status_t status, const char* what) {
  std::fprintf(stderr, "oneDNN: %s: %s\n", what, dnnl_status2str(status));
  std::abort();
}

// Smaller products run on one thread.
constexpr int64_t kMinimumWork = int64_t{1} << 20;
// The number of blocks of a large product.
constexpr int64_t kBlocks = 4;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

std::atomic<bool> bfloat16{false};

// Whether the processor multiplies bfloat16 operands. Only the avx512 build uses this, so that tests can compare both ways.
// ONEDNN_MAX_CPU_ISA also disables it.
bool has_bfloat16_instructions() {
#ifdef __AVX512F__
  constexpr int kNeeded = dnnl_cpu_isa_avx512_core_bf16;
  static const bool has = (dnnl_get_effective_cpu_isa() & kNeeded) == kNeeded;
  return has;
#else
  return false;
#endif
}

// Returns the bits of x rounded to the nearest bfloat16, ties to even. A NaN stays a NaN. Denormals become zero, as with
// the processor's instruction.
inline uint32_t rounded_bits(float x) {
  const uint32_t bits = as_bits(x), magnitude = bits & 0x7fffffff;
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
  // Rounding must not carry the mantissa of a NaN into its exponent.
  if (magnitude > 0x7f800000) return bits >> 16 << 16 | 0x400000;
  return (rounded & 0x7f800000) == 0 ? bits & 0x80000000 : rounded;
}

inline void round_to(float x, uint16_t* y) { *y = static_cast<uint16_t>(rounded_bits(x) >> 16); }
inline void round_to(float x, float* y) { *y = as_float(rounded_bits(x)); }

// y = scale * x, [rows, columns], rounded to bfloat16. y is contiguous; if its type is float, it holds bfloat16 values.
template <typename Number>
void to_bfloat16(int64_t rows, int64_t columns, float scale, const float* x, int64_t leading, Number* y) {
  parallel_for(rows, rows_per_chunk(columns), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = 0; i < columns; ++i) round_to(scale * x[row * leading + i], y + row * columns + i);
    }
  });
}

// c[m, n] = op(a) op(b) (+ c), as product(), for operands rounded to bfloat16, with float32 sums. The second overload takes
// rounded operands stored as float32: each product of two elements is then exact.
void bfloat16_product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const uint16_t* a,
                      int64_t lda, const uint16_t* b, int64_t ldb, bool adds, float* c, int64_t ldc) try {
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
  // oneDNN caches the code generated for these shapes.
  const dnnl::matmul product(dnnl::matmul::primitive_desc(processor, a_layout, b_layout, c_layout, attributes));
  product.execute(stream, {{DNNL_ARG_SRC, memory(a_layout, processor, const_cast<uint16_t*>(a))},
                           {DNNL_ARG_WEIGHTS, memory(b_layout, processor, const_cast<uint16_t*>(b))},
                           {DNNL_ARG_DST, memory(c_layout, processor, c)}});
  stream.wait();
} catch (const dnnl::error& error) {
  give_up(error.status, error.what());
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
  const dnnl_status_t status =
      dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  if (status != dnnl_success) give_up(status, "dnnl_sgemm");
}

void int8_product(int64_t m, int64_t n, int64_t k, const uint8_t* a, int64_t lda, const int8_t* b, int64_t ldb,
                  int32_t* c, int64_t ldc) {
  if (k == 0) {
    for (int64_t i = 0; i < m; ++i) std::fill(c + i * ldc, c + i * ldc + n, 0);
    return;
  }
  SingleThread single_thread;
  const int32_t added = 0;
  const dnnl_status_t status =
      dnnl_gemm_u8s8s32('N', 'N', 'F', m, n, k, 1.0f, a, lda, 0, b, ldb, 0, 0.0f, c, ldc, &added);
  if (status != dnnl_success) give_up(status, "dnnl_gemm_u8s8s32");
}

Blocks blocks_of(int64_t m, int64_t n, int64_t k) {
  // Splits the longer side of the result, at multiples of the tile size of oneDNN's inner kernels.
  Blocks blocks{m, n, m, n};
  if (m * n * k >= kMinimumWork) {
    if (n >= m) {
      blocks.columns = round_up((n + kBlocks - 1) / kBlocks, 64);
    } else {
      blocks.rows = round_up((m + kBlocks - 1) / kBlocks, 48);
    }
  }
  return blocks;
}

namespace {

void bfloat16_product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                      const float* b, int64_t ldb, bool adds, float* c, int64_t ldc) {
  product(transpose_a, transpose_b, m, n, k, 1.0f, a, lda, b, ldb, adds ? 1.0f : 0.0f, c, ldc);
}

// c = op(alpha * a) op(b) (+ c), with both operands rounded to bfloat16 and stored as `Number`.
template <typename Number>
void round_and_multiply(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                        const float* a, int64_t lda, const float* b, int64_t ldb, bool adds, float* c, int64_t ldc) {
  const int64_t a_rows = transpose_a ? k : m, a_columns = transpose_a ? m : k;
  const int64_t b_rows = transpose_b ? n : k, b_columns = transpose_b ? k : n;
  const int64_t a_size = round_up(a_rows * a_columns, 32);
  const int64_t bytes = (a_size + b_rows * b_columns) * sizeof(Number);
  auto* rounded_a = reinterpret_cast<Number*>(scratch((bytes + sizeof(float) - 1) / sizeof(float)));
  Number* rounded_b = rounded_a + a_size;
  to_bfloat16(a_rows, a_columns, alpha, a, lda, rounded_a);
  to_bfloat16(b_rows, b_columns, 1.0f, b, ldb, rounded_b);
  const Blocks blocks = blocks_of(m, n, k);
  parallel_chunks(blocks.count(), [=](int64_t chunk) {
    const Block block = blocks[chunk];
    bfloat16_product(transpose_a, transpose_b, block.rows, block.columns, k,
                     rounded_a + (transpose_a ? block.row : block.row * a_columns), a_columns,
                     rounded_b + (transpose_b ? block.column * b_columns : block.column), b_columns, adds,
                     c + block.row * ldc + block.column, ldc);
  });
}

}  // namespace
}  // namespace bert

void bert_matmul(bool transpose_a, bool transpose_b, int64_t batch, int64_t m, int64_t n, int64_t k, float alpha,
                 const float* a, int64_t lda, int64_t stride_a, const float* b, int64_t ldb, int64_t stride_b,
                 float beta, float* c, int64_t ldc, int64_t stride_c) {
  if (batch == 0 || m == 0 || n == 0) return;
  if (bert::bfloat16 && batch == 1 && m * n * k >= bert::kMinimumWork && (beta == 0.0f || beta == 1.0f)) {
    if (bert::has_bfloat16_instructions()) {
      bert::round_and_multiply<uint16_t>(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta == 1.0f, c,
                                         ldc);
    } else {
      bert::round_and_multiply<float>(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta == 1.0f, c, ldc);
    }
    return;
  }
  // Many matrices give every thread something to do without.
  const bert::Blocks blocks = batch < 2 * bert::kBlocks ? bert::blocks_of(m, n, k) : bert::Blocks{m, n, m, n};
  bert::parallel_chunks(batch * blocks.count(), [=](int64_t chunk) {
    const bert::Block block = blocks[chunk % blocks.count()];
    const int64_t matrix = chunk / blocks.count();
    const float* block_a = a + matrix * stride_a + (transpose_a ? block.row : block.row * lda);
    const float* block_b = b + matrix * stride_b + (transpose_b ? block.column * ldb : block.column);
    bert::product(transpose_a, transpose_b, block.rows, block.columns, k, alpha, block_a, lda, block_b, ldb, beta,
                  c + matrix * stride_c + block.row * ldc + block.column, ldc);
  });
}

void bert_set_bfloat16(bool on) { bert::bfloat16 = on; }

bool bert_has_bfloat16_instructions() { return bert::has_bfloat16_instructions(); }

void bert_linear(int64_t rows, int64_t inputs, int64_t outputs, const float* x, const float* weight, const float* bias,
                 float* y) {
  bert::parallel_for(rows, bert::rows_per_chunk(outputs), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) std::copy(bias, bias + outputs, y + row * outputs);
  });
  bert_matmul(false, false, 1, rows, outputs, inputs, 1.0f, x, inputs, 0, weight, outputs, 0, 1.0f, y, outputs, 0);
}
