// Declarations shared by the parts of the plugin.
#pragma once
#include "oneflow/core/framework/framework.h"

#include "kernels.h"
#include "split_mix.h"

namespace oneflow {
namespace {

using user_op::KernelComputeContext;
using user_op::KernelRegContext;
using user_op::Tensor;

template <void (*compute)(KernelComputeContext*)>
class Kernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(KernelComputeContext* context) const override { compute(context); }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

const Tensor& tensor(KernelComputeContext* context, const char* name, int index = 0) {
  return *CHECK_NOTNULL(context->Tensor4ArgNameAndIndex(name, index));
}

const float* input(KernelComputeContext* context, const char* name, int index = 0) {
  return tensor(context, name, index).dptr<float>();
}

const float* optional_input(KernelComputeContext* context, const char* name) {
  return context->has_input(name, 0) ? input(context, name) : nullptr;
}

float* output(KernelComputeContext* context, const char* name) {
  return CHECK_NOTNULL(context->Tensor4ArgNameAndIndex(name, 0))->mut_dptr<float>();
}

float* optional_output(KernelComputeContext* context, const char* name) {
  Tensor* made = context->has_output(name, 0) ? context->Tensor4ArgNameAndIndex(name, 0) : nullptr;
  return made != nullptr ? made->mut_dptr<float>() : nullptr;
}

int64_t count_of(const Tensor& tensor) { return tensor.shape_view().elem_cnt(); }

int64_t last_dimension(const Tensor& tensor) {
  const auto& shape = tensor.shape_view();
  return shape.NumAxes() == 0 ? 1 : shape.At(shape.NumAxes() - 1);
}

int64_t rows_of(const Tensor& tensor) {
  const int64_t columns = last_dimension(tensor);
  return columns == 0 ? 0 : count_of(tensor) / columns;
}

// OneFlow's prefix for the copy of an operator that recomputes an activation in the backward pass
// (checkpointing_pass.cpp).
constexpr const char kCopyPrefix[] = "Sys-Checkpointing-Fake-Fw-Op_";

// Returns the seed of the random stream of an operator in a graph. Ranks with different rows of `output` draw different
// numbers; the copy of an operator draws the same numbers as the operator.
uint64_t stream_seed(user_op::KernelInitContext* context, const char* output) {
  const std::string& name = context->op_name();
  const bool is_copy = name.compare(0, sizeof(kCopyPrefix) - 1, kCopyPrefix) == 0;
  const uint64_t seed = bert_stream_seed(name.c_str() + (is_copy ? sizeof(kCopyPrefix) - 1 : 0));
  const bool is_split = context->parallel_ctx().parallel_num() > 1 &&
                        context->NdSbp4ArgNameAndIndex(output, 0).sbp_parallel(0).has_split_parallel();
  return is_split ? seed + 0xD1342543DE82EF95u * (context->parallel_ctx().parallel_id() + 1) : seed;
}

// The random stream of one operator in a graph.
class RandomStream final : public user_op::OpKernelState {
 public:
  RandomStream(user_op::KernelInitContext* context, uint64_t seed)
      : seed_(seed), stream_(bert_open_stream(context->op_name().c_str())) {}
  ~RandomStream() override { bert_close_stream(stream_); }

  uint64_t seed() const { return seed_; }
  uint64_t next_call() { return bert_next_call(stream_); }
  // Returns 64 random bits for the next call.
  uint64_t next_key() { return bert::split_mix(seed_ + (next_call() + 1) * bert::kSplitMixStep); }

 private:
  const uint64_t seed_;
  BertRandomStream* const stream_;
};

auto on_cpu() { return user_op::HobDeviceType() == DeviceType::kCPU; }

auto is_float(const char* name) { return user_op::HobDataType(name, 0) == DataType::kFloat; }

auto is_index(const char* name) {
  return user_op::HobDataType(name, 0) == DataType::kInt32 || user_op::HobDataType(name, 0) == DataType::kInt64;
}

// A condition on shapes and attributes.
template <typename Condition>
auto when(const char* description, Condition condition) {
  return hob::make_custom(description, [condition](const KernelRegContext& context) -> bool {
    return condition(context);
  });
}

const Shape& shape_of(const KernelRegContext& context, const char* name) {
  return context.TensorDesc4ArgNameAndIndex(name, 0)->shape();
}

// The output may overwrite the input, if no other operator needs it.
user_op::InplaceProposalFn in_place(const char* output_name, const char* input_name) {
  return [=](const user_op::InferContext& context, const user_op::AddInplaceArgPair& add) -> Maybe<void> {
    if (context.has_input(input_name, 0)) { OF_RETURN_IF_ERROR(add(output_name, 0, input_name, 0, true)); }
    return Maybe<void>::Ok();
  };
}

#define REGISTER_BERT_KERNEL(name, function) \
  REGISTER_USER_KERNEL(name).SetCreateFn<Kernel<function>>().SetPriority(user_op::kKernelPriorityOptimized)

}  // namespace
}  // namespace oneflow
