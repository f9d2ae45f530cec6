// Additions to OneFlow's CUDA-only operators. On CUDA: a separate random stream for each dropout. On a CPU: plain kernels,
// with which tests run the graph for CUDA and check its results.
#include <algorithm>

#include "oneflow/core/ep/include/stream.h"
#include "oneflow/core/framework/random_generator.h"
#include "oneflow/core/framework/random_generator_impl.h"

#include "plugin.h"

namespace oneflow {

// Declarations from OneFlow headers that include CUDA's headers, which the wheel lacks.
namespace one {
class CUDAGeneratorImpl;
}
int GetCudaDeviceIndex();

// Same layout as in OneFlow's random_mask_generator.h.
template <DeviceType device_type>
class RandomMaskGenerator;

template <>
class RandomMaskGenerator<DeviceType::kCUDA> final {
 public:
  explicit RandomMaskGenerator(std::shared_ptr<one::CUDAGeneratorImpl> generator) : generator_(std::move(generator)) {}
  // mask[i] = true with probability 1 - rate.
  void Generate(ep::Stream* stream, int64_t count, float rate, bool* mask);

 private:
  std::shared_ptr<one::CUDAGeneratorImpl> generator_;
};

namespace {

// ---- dropout masks

// OneFlow's kernel uses the operator's seed, which is the same on all ranks and restarts when a run is resumed.
class MaskOnCuda final : public user_op::OpKernelState {
 public:
  explicit MaskOnCuda(user_op::KernelInitContext* context)
      : stream_(context, stream_seed(context, "out")),
        implementation_(CHECK_JUST(
            one::detail::MakeGeneratorImpl(stream_.next_key(), DeviceType::kCUDA, GetCudaDeviceIndex()))),
        generator_(std::shared_ptr<one::CUDAGeneratorImpl>(
            implementation_, reinterpret_cast<one::CUDAGeneratorImpl*>(implementation_.get()))) {}

  void generate(KernelComputeContext* context, Tensor* mask) {
    stream_.next_call();
    generator_.Generate(context->stream(), count_of(*mask), context->Attr<float>("rate"), mask->mut_dptr<bool>());
  }

 private:
  RandomStream stream_;
  std::shared_ptr<one::GeneratorImpl> implementation_;
  RandomMaskGenerator<DeviceType::kCUDA> generator_;
};

class MaskOnCpu final : public user_op::OpKernelState {
 public:
  explicit MaskOnCpu(user_op::KernelInitContext* context) : stream_(context, stream_seed(context, "out")) {}

  void generate(KernelComputeContext* context, Tensor* mask) {
    bert_random_mask(count_of(*mask), context->Attr<float>("rate"), stream_.seed(), stream_.next_call(),
                     reinterpret_cast<uint8_t*>(mask->mut_dptr<bool>()));
  }

 private:
  RandomStream stream_;
};

template <typename Mask>
class RandomMask final : public user_op::OpKernel {
 public:
  std::shared_ptr<user_op::OpKernelState> CreateOpKernelState(user_op::KernelInitContext* context) const override {
    return std::make_shared<Mask>(context);
  }

 private:
  using user_op::OpKernel::Compute;
  void Compute(KernelComputeContext* context, user_op::OpKernelState* state,
               const user_op::OpKernelCache*) const override {
    CHECK_NOTNULL(dynamic_cast<Mask*>(state))->generate(context, context->Tensor4ArgNameAndIndex("out", 0));
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

REGISTER_USER_KERNEL("random_mask_like")
    .SetCreateFn<RandomMask<MaskOnCuda>>()
    .SetIsMatchedHob(user_op::HobDeviceType() == DeviceType::kCUDA)
    .SetPriority(user_op::kKernelPriorityOptimized);
REGISTER_USER_KERNEL("random_mask_like")
    .SetCreateFn<RandomMask<MaskOnCpu>>()
    .SetIsMatchedHob(on_cpu())
    .SetPriority(user_op::kKernelPriorityOptimized);

// ---- (x + bias) * mask * scale (+ added)

void bias_add_mask_scale(KernelComputeContext* context) {
  const Tensor& x = tensor(context, "a");
  const float *bias = input(context, "b"), *added = optional_input(context, "_add_to_output");
  const bool* keep = tensor(context, "mask").dptr<bool>();
  const float scale = context->Attr<float>("scale");
  float* y = output(context, "out");
  const int64_t columns = last_dimension(x);
  for (int64_t i = 0; i < count_of(x); ++i) {
    const float kept = keep[i] ? (x.dptr<float>()[i] + bias[i % columns]) * scale : 0.0f;
    y[i] = added == nullptr ? kept : kept + added[i];
  }
}
REGISTER_BERT_KERNEL("fused_bias_add_mask_scale", bias_add_mask_scale)
    .SetIsMatchedHob(on_cpu() && is_float("out") && when("bias on the last axis", [](const KernelRegContext& context) {
      return context.Attr<int32_t>("axis") == shape_of(context, "a").NumAxes() - 1;
    }));

// ---- softmax of scaled scores, with masked scores filled by a value, and dropout

// Returns the mask broadcast to the shape of `like`.
std::vector<bool> broadcast_mask(const Tensor& mask, const Tensor& like) {
  const auto &shape = like.shape_view(), &mask_shape = mask.shape_view();
  CHECK_EQ(shape.NumAxes(), mask_shape.NumAxes());
  std::vector<bool> keep(count_of(like));
  for (int64_t i = 0; i < count_of(like); ++i) {
    int64_t rest = i, place = 0, stride = 1;
    for (int64_t axis = shape.NumAxes() - 1; axis >= 0; --axis) {
      const int64_t index = rest % shape.At(axis);
      rest /= shape.At(axis);
      if (mask_shape.At(axis) > 1) { place += index * stride; }
      stride *= mask_shape.At(axis);
    }
    keep[i] = mask.dptr<bool>()[place];
  }
  return keep;
}

void masked_softmax(KernelComputeContext* context, float* y) {
  const Tensor& x = tensor(context, "x");
  const float scale = context->Attr<float>("scale_value"), fill = context->Attr<float>("mask_fill_value");
  const std::vector<bool> keep = broadcast_mask(tensor(context, "mask"), x);
  for (int64_t i = 0; i < count_of(x); ++i) { y[i] = keep[i] ? x.dptr<float>()[i] * scale : fill; }
  bert_softmax(rows_of(x), last_dimension(x), y, y);
}

void scale_mask_softmax(KernelComputeContext* context) { masked_softmax(context, output(context, "y")); }
REGISTER_BERT_KERNEL("fused_scale_mask_softmax", scale_mask_softmax).SetIsMatchedHob(on_cpu() && is_float("y"));

void scale_mask_softmax_dropout(KernelComputeContext* context) {
  float *probability = output(context, "softmax_y"), *y = output(context, "y");
  masked_softmax(context, probability);
  const Tensor& kept = tensor(context, "dropout_mask");
  const float scale = context->Attr<float>("dropout_scale_value");
  for (int64_t i = 0; i < count_of(kept); ++i) { y[i] = kept.dptr<bool>()[i] ? probability[i] * scale : 0.0f; }
}
REGISTER_BERT_KERNEL("fused_scale_mask_softmax_dropout", scale_mask_softmax_dropout)
    .SetIsMatchedHob(on_cpu() && is_float("y"));

// Computes the gradient dx of the scores from the gradient dy of the probabilities y. dx may be dy.
void masked_softmax_grad(KernelComputeContext* context, const Tensor& y, const float* dy, float* dx) {
  const float scale = context->Attr<float>("scale_value");
  const std::vector<bool> keep = broadcast_mask(tensor(context, "mask"), y);
  bert_softmax_grad(rows_of(y), last_dimension(y), y.dptr<float>(), dy, dx);
  for (int64_t i = 0; i < count_of(y); ++i) { dx[i] = keep[i] ? dx[i] * scale : 0.0f; }
}

void scale_mask_softmax_grad(KernelComputeContext* context) {
  masked_softmax_grad(context, tensor(context, "y"), input(context, "dy"), output(context, "dx"));
}
REGISTER_BERT_KERNEL("fused_scale_mask_softmax_grad", scale_mask_softmax_grad)
    .SetIsMatchedHob(on_cpu() && is_float("dx"));

void scale_mask_softmax_dropout_grad(KernelComputeContext* context) {
  const Tensor &y = tensor(context, "softmax_y"), &kept = tensor(context, "dropout_mask");
  const float* dy = input(context, "dy");
  const float scale = context->Attr<float>("dropout_scale_value");
  float* dx = output(context, "dx");
  for (int64_t i = 0; i < count_of(y); ++i) { dx[i] = kept.dptr<bool>()[i] ? dy[i] * scale : 0.0f; }
  masked_softmax_grad(context, y, dx, dx);
}
REGISTER_BERT_KERNEL("fused_scale_mask_softmax_dropout_grad", scale_mask_softmax_dropout_grad)
    .SetIsMatchedHob(on_cpu() && is_float("dx"));

}  // namespace
}  // namespace oneflow

// For bert_choose_gradients: returns a map with one entry of `gradients`, the first by name. Valid until the next call.
BERT_KERNEL const void* bert_first_gradient(const void* gradients) {
  using Gradients = oneflow::HashMap<oneflow::LogicalBlobId, oneflow::LogicalBlobId>;
  static Gradients chosen;
  chosen.clear();
  const Gradients& all = *static_cast<const Gradients*>(gradients);
  const auto first = std::min_element(all.begin(), all.end(), [](const auto& a, const auto& b) {
    return a.first.op_name() < b.first.op_name();
  });
  if (first != all.end()) { chosen.insert(*first); }
  return &chosen;
}
