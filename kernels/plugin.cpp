// Gives the kernels to OneFlow: each registration below competes with OneFlow's own CPU kernel of the same operator, and
// wins by its priority, or implements an operator that has had a CUDA kernel only. What a registration does not match
// (other data types, other axes) stays with OneFlow.
#include "oneflow/core/common/balanced_splitter.h"
#include "oneflow/core/framework/random_generator.h"
#include "oneflow/core/framework/random_generator_impl.h"
#include "oneflow/core/job/resource_desc.h"

#include "plugin.h"

namespace oneflow {
namespace {

// Indices as int64, whatever integer type they have.
class Indices {
 public:
  explicit Indices(const Tensor& tensor) {
    if (tensor.data_type() == DataType::kInt64) {
      values_ = tensor.dptr<int64_t>();
    } else {
      const int32_t* narrow = tensor.dptr<int32_t>();
      converted_.assign(narrow, narrow + count_of(tensor));
      values_ = converted_.data();
    }
  }
  const int64_t* data() const { return values_; }

 private:
  std::vector<int64_t> converted_;
  const int64_t* values_;
};

// ---- matrix products

// beta, after making the output's content what it multiplies.
float begin_from_added(KernelComputeContext* context) {
  const float* added = optional_input(context, "_add_to_output");
  if (added == nullptr) { return 0.0f; }
  float* out = output(context, "out");
  if (added != out) { std::memcpy(out, added, count_of(tensor(context, "out")) * sizeof(float)); }
  return 1.0f;
}

// a [..., m, k], b [..., k, n] (or their transposes) -> out [..., m, n]; b may lack the leading dimensions.
void matmul(KernelComputeContext* context) {
  const auto& a_shape = tensor(context, "a").shape_view();
  const auto& b_shape = tensor(context, "b").shape_view();
  const auto& out_shape = tensor(context, "out").shape_view();
  const int64_t a_axes = a_shape.NumAxes(), b_axes = b_shape.NumAxes(), out_axes = out_shape.NumAxes();
  const bool transpose_a = context->Attr<bool>("transpose_a"), transpose_b = context->Attr<bool>("transpose_b");
  int64_t m = out_shape.At(out_axes - 2), n = out_shape.At(out_axes - 1);
  const int64_t k = a_shape.At(transpose_a ? a_axes - 2 : a_axes - 1);
  int64_t batch = out_shape.Count(0, out_axes - 2);
  if (b_axes == 2 && !transpose_a) {
    m *= batch;
    batch = 1;
  }
  bert_matmul(transpose_a, transpose_b, batch, m, n, k, context->Attr<double>("alpha"), input(context, "a"),
              transpose_a ? m : k, m * k, input(context, "b"), transpose_b ? k : n, b_axes == 2 ? 0 : k * n,
              begin_from_added(context), output(context, "out"), n, m * n);
}

// out = a^T b over all but the last dimensions of both.
void matmul_grad_b(KernelComputeContext* context) {
  const int64_t k = rows_of(tensor(context, "a"));
  const int64_t m = last_dimension(tensor(context, "a")), n = last_dimension(tensor(context, "b"));
  bert_matmul(true, false, 1, m, n, k, context->Attr<double>("alpha"), input(context, "a"), m, 0, input(context, "b"),
              n, 0, begin_from_added(context), output(context, "out"), n, 0);
}

// The leading dimensions of both are the same, or b has none.
bool is_plain_product(const KernelRegContext& context) {
  const Shape &a = shape_of(context, "a"), &b = shape_of(context, "b");
  if (a.NumAxes() < 2 || b.NumAxes() < 2) { return false; }
  if (b.NumAxes() == 2) { return true; }
  if (a.NumAxes() != b.NumAxes()) { return false; }
  for (int64_t i = 0; i < a.NumAxes() - 2; ++i) {
    if (a.At(i) != b.At(i)) { return false; }
  }
  return true;
}

#define REGISTER_MATMUL(name)                                                                                        \
  REGISTER_BERT_KERNEL(name, matmul)                                                                                 \
      .SetIsMatchedHob(on_cpu() && is_float("out") && when("plain product", is_plain_product))                       \
      .SetInplaceProposalFn(in_place("out", "_add_to_output"));
REGISTER_MATMUL("matmul")
REGISTER_MATMUL("batch_matmul")
REGISTER_MATMUL("broadcast_matmul")

REGISTER_BERT_KERNEL("broadcast_matmul_grad_b", matmul_grad_b)
    .SetIsMatchedHob(on_cpu() && is_float("out"))
    .SetInplaceProposalFn(in_place("out", "_add_to_output"));

// ---- layer normalisation

void layer_norm(KernelComputeContext* context) {
  const int64_t rows = count_of(tensor(context, "mean"));
  if (rows == 0) { return; }
  bert_layer_norm(rows, count_of(tensor(context, "x")) / rows, context->Attr<double>("epsilon"), input(context, "x"),
                  optional_input(context, "gamma"), optional_input(context, "beta"), output(context, "y"),
                  output(context, "mean"), output(context, "inv_variance"));
}
REGISTER_BERT_KERNEL("layer_norm", layer_norm).SetIsMatchedHob(on_cpu() && is_float("x"));

void layer_norm_grad(KernelComputeContext* context) {
  const int64_t rows = count_of(tensor(context, "mean"));
  if (rows == 0) { return; }
  bert_layer_norm_grad(rows, count_of(tensor(context, "x")) / rows, input(context, "dy"), input(context, "x"),
                       input(context, "mean"), input(context, "inv_variance"), optional_input(context, "gamma"),
                       optional_input(context, "_add_to_output"), output(context, "dx"));
}
REGISTER_BERT_KERNEL("layer_norm_grad", layer_norm_grad)
    .SetIsMatchedHob(on_cpu() && is_float("dy"))
    .SetInplaceProposalFn(in_place("dx", "_add_to_output"));

void layer_norm_param_grad(KernelComputeContext* context) {
  const int64_t rows = count_of(tensor(context, "mean"));
  const int64_t columns = rows == 0 ? 0 : count_of(tensor(context, "x")) / rows;
  bert_layer_norm_param_grad(rows, columns, input(context, "dy"), input(context, "x"), input(context, "mean"),
                             input(context, "inv_variance"), optional_output(context, "gamma_diff"),
                             optional_output(context, "beta_diff"));
}
REGISTER_BERT_KERNEL("layer_norm_param_grad", layer_norm_param_grad).SetIsMatchedHob(on_cpu() && is_float("dy"));

// ---- GELU

void gelu(KernelComputeContext* context) {
  const Tensor& x = tensor(context, "in");
  bert_gelu(rows_of(x), last_dimension(x), x.dptr<float>(), nullptr, output(context, "out"));
}
REGISTER_BERT_KERNEL("gelu", gelu).SetIsMatchedHob(on_cpu() && is_float("out"));

void gelu_grad(KernelComputeContext* context) {
  const Tensor& x = tensor(context, "x");
  bert_gelu_grad(rows_of(x), last_dimension(x), x.dptr<float>(), nullptr, input(context, "dy"), output(context, "dx"));
}
REGISTER_BERT_KERNEL("gelu_grad", gelu_grad).SetIsMatchedHob(on_cpu() && is_float("dx"));

bool bias_on_last_axis(const KernelRegContext& context) {
  return context.Attr<int32_t>("axis") == shape_of(context, "a").NumAxes() - 1;
}

void bias_gelu(KernelComputeContext* context) {
  const Tensor& x = tensor(context, "a");
  bert_gelu(rows_of(x), last_dimension(x), x.dptr<float>(), input(context, "b"), output(context, "out"));
}
REGISTER_BERT_KERNEL("fused_bias_add_gelu", bias_gelu)
    .SetIsMatchedHob(on_cpu() && is_float("out") && when("bias on the last axis", bias_on_last_axis));

void bias_gelu_grad(KernelComputeContext* context) {
  const Tensor& x = tensor(context, "a");
  bert_gelu_grad(rows_of(x), last_dimension(x), x.dptr<float>(), input(context, "b"), input(context, "dy"),
                 output(context, "dx"));
}
REGISTER_BERT_KERNEL("fused_bias_add_gelu_grad", bias_gelu_grad)
    .SetIsMatchedHob(on_cpu() && is_float("dx") && when("bias on the last axis", bias_on_last_axis));

// ---- softmax and cross-entropy

void softmax(KernelComputeContext* context) {
  const Tensor& x = tensor(context, "in");
  bert_softmax(rows_of(x), last_dimension(x), x.dptr<float>(), output(context, "out"));
}
REGISTER_BERT_KERNEL("softmax", softmax)
    .SetIsMatchedHob(on_cpu() && is_float("out"))
    .SetInplaceProposalFn(in_place("out", "in"));

void softmax_grad(KernelComputeContext* context) {
  const Tensor& y = tensor(context, "y");
  bert_softmax_grad(rows_of(y), last_dimension(y), y.dptr<float>(), input(context, "dy"), output(context, "dx"));
}
REGISTER_BERT_KERNEL("softmax_grad", softmax_grad)
    .SetIsMatchedHob(on_cpu() && is_float("dx"))
    .SetInplaceProposalFn(in_place("dx", "dy"));

void log_softmax(KernelComputeContext* context) {
  const Tensor& x = tensor(context, "in");
  bert_log_softmax(rows_of(x), last_dimension(x), x.dptr<float>(), output(context, "prob"));
}
REGISTER_BERT_KERNEL("log_softmax", log_softmax).SetIsMatchedHob(on_cpu() && is_float("prob"));

void log_softmax_grad(KernelComputeContext* context) {
  const Tensor& y = tensor(context, "prob");
  bert_log_softmax_grad(rows_of(y), last_dimension(y), y.dptr<float>(), input(context, "dy"), output(context, "dx"));
}
REGISTER_BERT_KERNEL("log_softmax_grad", log_softmax_grad).SetIsMatchedHob(on_cpu() && is_float("dx"));

// "prob" is the logarithm of the probabilities: what OneFlow's kernel puts there.
void cross_entropy(KernelComputeContext* context) {
  const Indices label(tensor(context, "label"));
  const int64_t rows = count_of(tensor(context, "label"));
  if (rows == 0) { return; }
  const int64_t columns = count_of(tensor(context, "prediction")) / rows;
  float* log_probability = output(context, "prob");
  float* loss = output(context, "out");
  bert_log_softmax(rows, columns, input(context, "prediction"), log_probability);
  for (int64_t row = 0; row < rows; ++row) {
    CHECK(label.data()[row] >= 0 && label.data()[row] < columns);
    loss[row] = -log_probability[row * columns + label.data()[row]];
  }
}
REGISTER_BERT_KERNEL("sparse_softmax_cross_entropy", cross_entropy)
    .SetIsMatchedHob(on_cpu() && is_float("out") && is_index("label"));

void cross_entropy_grad(KernelComputeContext* context) {
  const Indices label(tensor(context, "label"));
  const int64_t rows = count_of(tensor(context, "label"));
  if (rows == 0) { return; }
  bert_cross_entropy_grad(rows, count_of(tensor(context, "prob")) / rows, input(context, "prob"), label.data(),
                          input(context, "dy"), output(context, "prediction_diff"));
}
REGISTER_BERT_KERNEL("sparse_softmax_cross_entropy_grad", cross_entropy_grad)
    .SetIsMatchedHob(on_cpu() && is_float("prediction_diff") && is_index("label"))
    .SetInplaceProposalFn(in_place("prediction_diff", "prob"));

// ---- embeddings

// The part of a table that this rank holds, where several share one.
class FirstRow final : public user_op::OpKernelCache {
 public:
  explicit FirstRow(int64_t row) : row_(row) {}
  int64_t row() const { return row_; }

 private:
  const int64_t row_;
};

std::shared_ptr<user_op::OpKernelCache> first_row_of(user_op::KernelCacheContext* context, const char* table) {
  if (context->parallel_ctx().parallel_num() == 1) { return nullptr; }
  const auto& signature = context->NdSbp4ArgNameAndIndex(table, 0);
  const bool is_split = signature.sbp_parallel(0).has_split_parallel() &&
                        signature.sbp_parallel(0).split_parallel().axis() == 0;
  if (!is_split) { return nullptr; }
  CHECK_EQ(signature.sbp_parallel_size(), 1);
  const int64_t rows = context->LogicalTensorDesc4ArgNameAndIndex(table, 0)->shape().At(0);
  const BalancedSplitter splitter(rows, context->parallel_ctx().parallel_num());
  return std::make_shared<FirstRow>(splitter.At(context->parallel_ctx().parallel_id()).begin());
}

int64_t first_row(const user_op::OpKernelCache* cache) {
  return cache == nullptr ? 0 : CHECK_NOTNULL(dynamic_cast<const FirstRow*>(cache))->row();
}

class Gather final : public user_op::OpKernel {
 public:
  std::shared_ptr<user_op::OpKernelCache> InitOpKernelCache(user_op::KernelCacheContext* context) const override {
    return first_row_of(context, "in");
  }

 private:
  using user_op::OpKernel::Compute;
  void Compute(KernelComputeContext* context, user_op::OpKernelState*,
               const user_op::OpKernelCache* cache) const override {
    const Tensor& table = tensor(context, "in");
    const Tensor& id = tensor(context, "indices");
    bert_gather(count_of(id), table.shape_view().Count(1), table.dptr<float>(), table.shape_view().At(0),
                Indices(id).data(), first_row(cache), output(context, "out"));
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

bool on_first_axis(const KernelRegContext& context) { return context.Attr<int64_t>("axis") == 0; }

REGISTER_USER_KERNEL("gather")
    .SetCreateFn<Gather>()
    .SetIsMatchedHob(on_cpu() && is_float("in") && is_index("indices") && when("on the first axis", on_first_axis))
    .SetPriority(user_op::kKernelPriorityOptimized);

// The gradient of gather.
class SegmentSum final : public user_op::OpKernel {
 public:
  std::shared_ptr<user_op::OpKernelCache> InitOpKernelCache(user_op::KernelCacheContext* context) const override {
    return first_row_of(context, "out");
  }

 private:
  using user_op::OpKernel::Compute;
  void Compute(KernelComputeContext* context, user_op::OpKernelState*,
               const user_op::OpKernelCache* cache) const override {
    const Tensor& table = tensor(context, "out");
    const Tensor& id = tensor(context, "segment_ids");
    bert_gather_grad(count_of(id), table.shape_view().Count(1), input(context, "data"), Indices(id).data(),
                     first_row(cache), output(context, "out"), table.shape_view().At(0));
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return true; }
};

REGISTER_USER_KERNEL("unsorted_segment_sum_like")
    .SetCreateFn<SegmentSum>()
    .SetIsMatchedHob(on_cpu() && is_float("out") && is_index("segment_ids") &&
                     when("on the first axis", on_first_axis))
    .SetPriority(user_op::kKernelPriorityOptimized);

// ---- dropout

// The class in which OneFlow's eager function brings its generator, as its header (not in the wheel) defines it.
}  // namespace

class FusedDropoutKernelState : public user_op::OpKernelState {
 public:
  explicit FusedDropoutKernelState(const std::shared_ptr<one::Generator>& generator) : generator_(generator) {}
  const std::shared_ptr<one::Generator>& generator() const { return generator_; }

 private:
  std::shared_ptr<one::Generator> generator_;
};

namespace {

// Where the next mask comes from: the operator's own stream, or 64 bits of the generator that an eager call brings.
struct RandomSource {
  uint64_t seed, call;
};

RandomSource next_source(user_op::OpKernelState* state) {
  if (auto* stream = dynamic_cast<RandomStream*>(state)) {
    const uint64_t call = stream->next_call();
    return {stream->seed(), call};
  }
  const auto& generator = CHECK_NOTNULL(dynamic_cast<FusedDropoutKernelState*>(state))->generator();
  auto& engine = CHECK_JUST(generator->Get<one::CPUGeneratorImpl>())->engine();
  const uint64_t high = engine();
  return {high << 32 | engine(), 0};
}

// Dropout has no seed attribute, and in a graph OneFlow's own kernel gives every dropout of every run the same mask.
// Here the process's seed and the operator's name make the stream.
class Dropout final : public user_op::OpKernel {
 public:
  std::shared_ptr<user_op::OpKernelState> CreateOpKernelState(user_op::KernelInitContext* context) const override {
    return std::make_shared<RandomStream>(context, stream_seed(context, "out"));
  }

 private:
  using user_op::OpKernel::Compute;
  void Compute(KernelComputeContext* context, user_op::OpKernelState* state,
               const user_op::OpKernelCache*) const override {
    const RandomSource source = next_source(state);
    const float rate = context->Attr<float>("rate");
    Tensor* mask = context->Tensor4ArgNameAndIndex("mask", 0);
    uint8_t* keep = reinterpret_cast<uint8_t*>(mask->mut_dptr<bool>());
    bert_random_mask(count_of(*mask), rate, source.seed, source.call, keep);
    bert_apply_mask(count_of(*mask), rate < 1.0f ? 1.0f / (1.0f - rate) : 0.0f, input(context, "in"), keep,
                    optional_input(context, "_add_to_output"), output(context, "out"));
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

REGISTER_USER_KERNEL("dropout")
    .SetCreateFn<Dropout>()
    .SetIsMatchedHob(on_cpu() && is_float("out"))
    .SetInplaceProposalFn(in_place("out", "in"))
    .SetPriority(user_op::kKernelPriorityOptimized);

void dropout_grad(KernelComputeContext* context) {
  const Tensor& mask = tensor(context, "mask");
  bert_apply_mask(count_of(mask), context->Attr<float>("scale"), input(context, "dy"),
                  reinterpret_cast<const uint8_t*>(mask.dptr<bool>()), nullptr, output(context, "dx"));
}
REGISTER_BERT_KERNEL("dropout_grad", dropout_grad)
    .SetIsMatchedHob(on_cpu() && is_float("dx"))
    .SetInplaceProposalFn(in_place("dx", "dy"));

// ---- sums, biases, permutations

void add_n(KernelComputeContext* context) {
  std::vector<const float*> x;
  for (int32_t i = 0; i < context->input_size("in"); ++i) { x.push_back(input(context, "in", i)); }
  bert_add_n(count_of(tensor(context, "out")), x.size(), x.data(), output(context, "out"));
}
REGISTER_BERT_KERNEL("add_n", add_n)
    .SetIsMatchedHob(on_cpu() && is_float("out"))
    .SetInplaceProposalFn(in_place("out", "in"));

void bias_add(KernelComputeContext* context) {
  const Tensor& x = tensor(context, "a");
  bert_bias_add(rows_of(x), last_dimension(x), x.dptr<float>(), input(context, "b"), output(context, "out"));
}
REGISTER_BERT_KERNEL("bias_add", bias_add)
    .SetIsMatchedHob(on_cpu() && is_float("out") && when("bias on the last axis", bias_on_last_axis))
    .SetInplaceProposalFn(in_place("out", "a"));

// All axes but the last, or but the last and others of size 1.
bool sums_rows(const KernelRegContext& context) {
  const Shape& shape = shape_of(context, "input_tensor");
  const auto& axes = context.Attr<std::vector<int32_t>>("axis");
  if (shape.NumAxes() < 2 || static_cast<int64_t>(axes.size()) != shape.NumAxes() - 1) { return false; }
  for (const int32_t axis : axes) {
    if (axis < 0 || axis == shape.NumAxes() - 1) { return false; }
  }
  return true;
}

void sum_rows(KernelComputeContext* context) {
  const Tensor& x = tensor(context, "input_tensor");
  bert_sum_rows(rows_of(x), last_dimension(x), x.dptr<float>(), output(context, "output_tensor"));
}
REGISTER_BERT_KERNEL("reduce_sum", sum_rows)
    .SetIsMatchedHob(on_cpu() && is_float("output_tensor") && when("sums rows", sums_rows));

void sum_of_squares(KernelComputeContext* context) {
  double total = 0.0;
  for (int32_t i = 0; i < context->input_size("x"); ++i) {
    const Tensor& x = tensor(context, "x", i);
    total += bert_sum_of_squares(count_of(x), x.dptr<float>());
  }
  *output(context, "y") = static_cast<float>(total);
}
REGISTER_BERT_KERNEL("multi_reduce_sum_pow_abs", sum_of_squares)
    .SetIsMatchedHob(on_cpu() && is_float("y") && when("squares", [](const KernelRegContext& context) {
      return context.Attr<float>("p") == 2.0f;
    }));

bool swaps_middle(const KernelRegContext& context) {
  return context.Attr<std::vector<int32_t>>("perm") == std::vector<int32_t>{0, 2, 1, 3};
}

void swap_middle(KernelComputeContext* context) {
  const auto& shape = tensor(context, "input").shape_view();
  bert_swap_middle(shape.At(0), shape.At(1), shape.At(2), shape.At(3), input(context, "input"),
                   output(context, "output"));
}
REGISTER_BERT_KERNEL("transpose", swap_middle)
    .SetIsMatchedHob(on_cpu() && is_float("output") && when("swaps the middle axes", swaps_middle));

// ---- streams

// A graph's operators run on as many streams, each with a thread, as there are processors, dealt out in turn. One after
// the other on one thread they need no messages between threads, and the kernels have all processors to themselves.
// To be called when the session is open, before the first graph is compiled, with the session's ResourceDesc.
}  // namespace
}  // namespace oneflow

BERT_KERNEL void bert_use_one_stream(oneflow::ResourceDesc* session) { session->SetCpuDeviceNum(1); }
