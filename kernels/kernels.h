// The kernels as plain C functions without OneFlow, so that they can be tested and sanitised on their own.
//
// All arrays are contiguous, row-major and float32, unless a leading dimension says otherwise. Pointers need only the
// alignment of their type. Every function uses the threads of parallel.h; results do not depend on their number.
#pragma once
#include <cstdint>

#define BERT_KERNEL extern "C" __attribute__((visibility("default")))

// ---- threads (parallel.cpp)

// Sets the number of threads, including the caller. 0: the number of processors that the process may use.
BERT_KERNEL void bert_set_thread_count(int count);
BERT_KERNEL int bert_thread_count();

// ---- matrix products (matmul.cpp)

// For each of `batch` matrices: c[m, n] = alpha * op(a) op(b) + beta * c, where op(a) is [m, k], op(b) is [k, n], and a
// transposed operand is stored as its transpose. ld* are leading dimensions, stride_* the distances between the matrices
// of a batch (0: one matrix for all), both in elements.
BERT_KERNEL void bert_matmul(bool transpose_a, bool transpose_b, int64_t batch, int64_t m, int64_t n, int64_t k,
                             float alpha, const float* a, int64_t lda, int64_t stride_a, const float* b, int64_t ldb,
                             int64_t stride_b, float beta, float* c, int64_t ldc, int64_t stride_c);

// Sets whether large products with batch 1 round their operands to bfloat16 (to nearest, ties to even). Denormal operands
// become zero; sums are float32.
BERT_KERNEL void bert_set_bfloat16(bool on);
// Returns whether the processor and this build multiply bfloat16 in hardware (avx512_bf16). Otherwise operands are rounded
// in software and multiplied in float32, slower than float32 alone. The results differ only in the order of sums.
BERT_KERNEL bool bert_has_bfloat16_instructions();

// ---- products in int8 (int8.cpp)

// A weight [inputs, outputs] in int8. The step of a column is the largest magnitude of its values, and of the sums of its
// values 2 i and 2 i + 1, divided by 127.
struct BertInt8Weight;
BERT_KERNEL BertInt8Weight* bert_round_to_int8(int64_t inputs, int64_t outputs, const float* weight);
BERT_KERNEL void bert_free_int8(BertInt8Weight* weight);
// y = x weight (+ bias, unless null). Each row of x [rows, inputs] is rounded to 255 steps from its least value to its
// largest, with 0.0 among them. Sums are exact, in 32 bits, for up to kMostInt8Inputs inputs. Rows and columns that are
// within 1e-36 count as zero. Those with NaN or infinity, or a difference or sum above that float32 cannot hold, give NaN.
constexpr int64_t kMostInt8Inputs = 131072;
BERT_KERNEL void bert_int8_linear(int64_t rows, const float* x, const BertInt8Weight* weight, const float* bias,
                                  float* y);

// ---- normalisation (layer_norm.cpp); x is [rows, columns], gamma and beta may be null

BERT_KERNEL void bert_layer_norm(int64_t rows, int64_t columns, double epsilon, const float* x, const float* gamma,
                                 const float* beta, float* y, float* mean, float* inverse_deviation);
// dx = gradient (+ added, unless null).
BERT_KERNEL void bert_layer_norm_grad(int64_t rows, int64_t columns, const float* dy, const float* x, const float* mean,
                                      const float* inverse_deviation, const float* gamma, const float* added,
                                      float* dx);
// dgamma or dbeta may be null.
BERT_KERNEL void bert_layer_norm_param_grad(int64_t rows, int64_t columns, const float* dy, const float* x,
                                            const float* mean, const float* inverse_deviation, float* dgamma,
                                            float* dbeta);

// ---- activation (gelu.cpp); bias [columns] may be null

// y = gelu(x + bias), by erf.
BERT_KERNEL void bert_gelu(int64_t rows, int64_t columns, const float* x, const float* bias, float* y);
// dx = dy * gelu'(x + bias).
BERT_KERNEL void bert_gelu_grad(int64_t rows, int64_t columns, const float* x, const float* bias, const float* dy,
                                float* dx);

// ---- softmax.cpp; x is [rows, columns]

BERT_KERNEL void bert_softmax(int64_t rows, int64_t columns, const float* x, float* y);
BERT_KERNEL void bert_softmax_grad(int64_t rows, int64_t columns, const float* y, const float* dy, float* dx);
BERT_KERNEL void bert_log_softmax(int64_t rows, int64_t columns, const float* x, float* y);
// y is log_softmax's output.
BERT_KERNEL void bert_log_softmax_grad(int64_t rows, int64_t columns, const float* y, const float* dy, float* dx);
// dx = dy[row] * (exp(log_probability) - [column == label[row]]); dx may be log_probability.
BERT_KERNEL void bert_cross_entropy_grad(int64_t rows, int64_t columns, const float* log_probability,
                                         const int64_t* label, const float* dy, float* dx);

// ---- dropout.cpp

// Sets the seed of all random streams.
BERT_KERNEL void bert_set_seed(uint64_t seed);
// Returns the seed of the stream `name`.
BERT_KERNEL uint64_t bert_stream_seed(const char* name);
// The random stream of an operator in a graph: a seed and the number of the next call. It starts at call 0, or at the call
// set by bert_restore_stream, which applies once. bert_list_streams lists the newest stream of each name.
struct BertRandomStream;
BERT_KERNEL BertRandomStream* bert_open_stream(const char* name);
BERT_KERNEL void bert_close_stream(BertRandomStream* stream);
BERT_KERNEL uint64_t bert_next_call(BertRandomStream* stream);
// Writes a line "<calls> <name>" for each open stream, sorted by name, if `capacity` suffices. Returns the size of all
// lines.
BERT_KERNEL int64_t bert_list_streams(char* lines, int64_t capacity);
BERT_KERNEL void bert_restore_stream(const char* name, uint64_t calls);
BERT_KERNEL uint64_t bert_seed();
// keep[i] = 1 with probability 1 - rate. Random bits depend only on (seed, call, index); see random.h.
BERT_KERNEL void bert_random_mask(int64_t count, float rate, uint64_t seed, uint64_t call, uint8_t* keep);
// y = x * keep * scale (+ added, unless null).
BERT_KERNEL void bert_apply_mask(int64_t count, float scale, const float* x, const uint8_t* keep, const float* added,
                                 float* y);

// ---- embedding.cpp

// y[i] = table[id[i] - first], a row of `columns`; zero if the index is outside [0, table_rows).
BERT_KERNEL void bert_gather(int64_t count, int64_t columns, const float* table, int64_t table_rows, const int64_t* id,
                             int64_t first, float* y);
// table = 0; then table[id[i] - first] += dy[i], in the order of i.
BERT_KERNEL void bert_gather_grad(int64_t count, int64_t columns, const float* dy, const int64_t* id, int64_t first,
                                  float* table, int64_t table_rows);

// ---- elementwise.cpp

// y = sum of `inputs` arrays.
BERT_KERNEL void bert_add_n(int64_t count, int inputs, const float* const* x, float* y);
// y = x + bias, where x is [rows, columns].
BERT_KERNEL void bert_bias_add(int64_t rows, int64_t columns, const float* x, const float* bias, float* y);
// y[column] = sum over the rows.
BERT_KERNEL void bert_sum_rows(int64_t rows, int64_t columns, const float* x, float* y);
// Sum of the squares of all elements, in double precision.
BERT_KERNEL double bert_sum_of_squares(int64_t count, const float* x);
// y[a, c, b, d] = x[a, b, c, d], d innermost.
BERT_KERNEL void bert_swap_middle(int64_t a, int64_t b, int64_t c, int64_t d, const float* x, float* y);

// ---- packing.cpp: sequences stored one after the other, without the padding at their end. A layout is [batch, length]: the
// mask that attention adds to the scores, and -infinity for the positions at the end that are not stored.

// input_mask [batch, length]: 1 for a token, 0 for padding. What follows the last token is not stored; a sequence without
// a token is stored whole.
BERT_KERNEL void bert_layout(int64_t batch, int64_t length, const float* input_mask, float* layout);
// Returns the number of stored rows. Writes to `places`, unless null, the index among batch * length of each.
BERT_KERNEL int64_t bert_stored_rows(int64_t batch, int64_t length, const float* layout, int64_t* places);
// From [batch * length, columns] to the stored rows, and back, with zeros for the others.
BERT_KERNEL void bert_pack(int64_t batch, int64_t length, int64_t columns, const float* layout, const float* x, float* y);
BERT_KERNEL void bert_unpack(int64_t batch, int64_t length, int64_t columns, const float* layout, const float* x,
                             float* y);

// ---- fused operators; `random` has the key of the random bits of each sequence (see dropout.cpp)

struct BertAttention {
  int64_t batch, length, heads, head_size;
  float rate;  // of dropout on the probabilities
  int64_t hidden() const { return heads * head_size; }
  float scale() const { return 1.0f / __builtin_sqrtf(static_cast<float>(head_size)); }
};
// attention.cpp: out = dropout(softmax(query key^T / sqrt(head_size) + mask)) value, for each head. query, key, value and
// out are [rows, hidden], heads side by side; mask is a layout, whose stored positions the rows are. random may be null if
// rate is 0. The random bits of a row do not depend on which others are stored. The gradient recomputes the probabilities.
BERT_KERNEL void bert_attention(const BertAttention* shape, const float* query, const float* key, const float* value,
                                const float* mask, const int64_t* random, float* out);
BERT_KERNEL void bert_attention_grad(const BertAttention* shape, const float* dout, const float* query,
                                     const float* key, const float* value, const float* mask, const int64_t* random,
                                     float* dquery, float* dkey, float* dvalue);

// residual_norm.cpp: y = layer_norm(dropout(x + bias) + residual) * gamma + beta, all [rows, columns]. Also writes what
// the gradient needs: normalised (before gamma and beta) and inverse_deviation [rows]. The random bits of row i are those
// of row places[i], or of row i if places is null.
BERT_KERNEL void bert_residual_norm(int64_t rows, int64_t columns, float rate, double epsilon, const float* x,
                                    const float* bias, const float* residual, const float* gamma, const float* beta,
                                    const int64_t* random, const int64_t* places, float* y, float* normalised,
                                    float* inverse_deviation);
BERT_KERNEL void bert_residual_norm_grad(int64_t rows, int64_t columns, float rate, const float* dy,
                                         const float* normalised, const float* inverse_deviation, const float* gamma,
                                         const int64_t* random, const int64_t* places, float* dx, float* dresidual,
                                         float* dbias, float* dgamma, float* dbeta);

// gelu.cpp: the gradients of gelu(x + bias) by x and by bias.
BERT_KERNEL void bert_bias_gelu_grad(int64_t rows, int64_t columns, const float* x, const float* bias, const float* dy,
                                     float* dx, float* dbias);

// matmul.cpp: y[rows, outputs] = x[rows, inputs] weight[inputs, outputs] + bias.
BERT_KERNEL void bert_linear(int64_t rows, int64_t inputs, int64_t outputs, const float* x, const float* weight,
                             const float* bias, float* y);

// ---- optimisers

struct BertAdam {
  float learning_rate, beta1, beta2, epsilon, weight_decay;
  float gradient_scale, l1, l2;
  float bias_correction1, bias_correction2;
};
// adam.cpp: one step of Adam with decoupled weight decay, in place. max_v (AMSGrad) may be null.
BERT_KERNEL void bert_adam(int64_t count, const BertAdam* settings, const float* gradient, float* parameter, float* m,
                           float* v, float* max_v);

// lamb.cpp: one step of LAMB, in place: Adam's step with decay (l1 and l2 are ignored), scaled by the ratio of the norm of
// `parameter` to that of the step. The ratio is 1 if either norm is 0 or there is no decay.
BERT_KERNEL void bert_lamb(int64_t count, const BertAdam* settings, const float* gradient, float* parameter, float* m,
                           float* v);

// ---- sums over the ranks of a machine, which are processes (rank_sum.cpp)

// Returns the file descriptor of new memory for `ranks` processes, or minus an errno. The caller may write a token to its
// first 64 bytes.
BERT_KERNEL int bert_make_rank_memory(int ranks);
// Makes this process `rank` of those that share the memory of the file `memory`. Each has opened the file itself; it may
// close it afterwards. Returns 0 or an errno.
BERT_KERNEL int bert_join_ranks(int memory, int ranks, int rank);
// y[i] = the sum of x[i] over the ranks, for each of `arrays` arrays, whose sizes are `count`; y[i] may be x[i]. All ranks
// call it with the same sizes, and get the same bits. Waits for the other ranks; aborts the process if one has ended.
BERT_KERNEL void bert_sum_over_ranks(int arrays, const int64_t* count, const float* const* x, float* const* y);
// The halves of bert_sum_over_ranks, for what is summed over several machines. The first gives each rank the sums of slices
// of the arrays: bert_slices_size floats for `count` floats in all arrays. The second takes slices and gives each rank all.
BERT_KERNEL int64_t bert_slices_size(int64_t count, int ranks);
BERT_KERNEL void bert_scatter_over_ranks(int arrays, const int64_t* count, const float* const* x, float* slices);
BERT_KERNEL void bert_gather_over_ranks(int arrays, const int64_t* count, const float* slices, float* const* y);
