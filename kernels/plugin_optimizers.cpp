// The optimisers' updates: Adam's on a CPU; LAMB's as NVIDIA's FusedLAMB has it. OneFlow's own LAMB leaves the decay out of
// the norm by which it divides, and gives biases and LayerNorm a trust ratio too.
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "oneflow/core/kernel/new_kernel_util.h"

#include "plugin.h"

namespace oneflow {

// As in OneFlow's model_update_kernel_util.h, which the wheel lacks: one step of each optimiser, in place, on any device.
// Pointers to scalars take the place of the values before them; any of these may be null.

template <DeviceType device_type, typename T, typename G, typename C>
struct SGDUpdateKernelUtil {
  static void Update(ep::Stream* stream, int64_t n, T scale, float l1, float l2, float weight_decay,
                     float learning_rate_val, float lr_scale, const float* learning_rate, const T* scale_by_ptr,
                     const int64_t* skip_if, const G* model_diff, T* model, C* model_copy);
};

template <DeviceType device_type, typename T, typename G, typename C>
struct AdamUpdateKernelUtil {
  static void Update(ep::Stream* stream, int64_t n, T scale, float l1, float l2, float beta1, float beta2,
                     float epsilon, float weight_decay, bool amsgrad, bool do_bias_correction, float learning_rate_val,
                     float lr_scale, float bias_correction1_val, float bias_correction2_val,
                     const float* learning_rate, const T* scale_by_ptr, const int64_t* skip_if,
                     const float* bias_correction1, const float* bias_correction2, const G* model_diff, T* model,
                     C* model_copy, T* m, T* v, T* max_v);
};

template <DeviceType device_type, typename T, typename G>
struct LambUpdateKernelUtil {
  static void Update(ep::Stream* stream, int64_t n, float scale, float l1, float l2, float beta1, float beta2,
                     float epsilon, float weight_decay, float learning_rate_val, float lr_scale,
                     bool do_bias_correction, float bias_correction1_val, float bias_correction2_val,
                     const float* learning_rate_ptr, const float* bias_correction1_ptr,
                     const float* bias_correction2_ptr, const T* scale_by_ptr, const int64_t* skip_if,
                     const G* model_diff, T* adam_diff, T* model, T* m, T* v, T* norm_buffer);
};

namespace {

// ---- Adam

float value_or_attribute(KernelComputeContext* context, const char* name, const char* attribute) {
  const float* value = optional_input(context, name);
  return value != nullptr ? *value : context->Attr<float>(attribute);
}

// Whether an overflow of float16 makes the optimiser leave out this step.
bool is_skipped(KernelComputeContext* context) {
  return context->has_input("skip_if", 0) && *tensor(context, "skip_if").dptr<int64_t>() != 0;
}

BertAdam adam_settings(KernelComputeContext* context) {
  BertAdam settings;
  settings.learning_rate = value_or_attribute(context, "learning_rate", "learning_rate_val") *
                           context->Attr<float>("learning_rate_scale");
  settings.beta1 = context->Attr<float>("beta1");
  settings.beta2 = context->Attr<float>("beta2");
  settings.epsilon = context->Attr<float>("epsilon");
  settings.weight_decay = context->Attr<float>("weight_decay");
  settings.gradient_scale = static_cast<float>(context->Attr<double>("scale"));
  const float* scale = optional_input(context, "scale_by_tensor");
  if (scale != nullptr) { settings.gradient_scale *= *scale; }
  settings.l1 = context->Attr<float>("l1");
  settings.l2 = context->Attr<float>("l2");
  settings.bias_correction1 = value_or_attribute(context, "bias_correction1", "bias_correction1_val");
  settings.bias_correction2 = value_or_attribute(context, "bias_correction2", "bias_correction2_val");
  return settings;
}

void adam(KernelComputeContext* context) {
  if (is_skipped(context)) { return; }
  const BertAdam settings = adam_settings(context);
  bert_adam(count_of(tensor(context, "model")), &settings, input(context, "model_diff"), output(context, "model"),
            output(context, "m"), output(context, "v"),
            context->Attr<bool>("amsgrad") ? output(context, "max_v") : nullptr);
}

// A float16 copy of the model is made for CUDA's mixed precision only.
bool has_no_copy(const KernelRegContext& context) {
  for (const auto& input : context.inputs()) {
    if (input.first == "model_copy") { return false; }
  }
  return true;
}
REGISTER_BERT_KERNEL("adam_update", adam)
    .SetIsMatchedHob(on_cpu() && is_float("model") && is_float("model_diff") &&
                     when("no copy", has_no_copy));

// ---- LAMB on a CPU

void check_has_no_penalty(KernelComputeContext* context) {
  CHECK(context->Attr<float>("l1") == 0.0f && context->Attr<float>("l2") == 0.0f) << "LAMB has no l1 or l2 penalty";
}

void lamb(KernelComputeContext* context) {
  check_has_no_penalty(context);
  if (is_skipped(context)) { return; }
  const BertAdam settings = adam_settings(context);
  bert_lamb(count_of(tensor(context, "model")), &settings, input(context, "model_diff"), output(context, "model"),
            output(context, "m"), output(context, "v"));
}

// As engine/operators.py reads it.
auto as_on_cuda() {
  return when("as on CUDA", [](const KernelRegContext&) {
    const char* operators = std::getenv("BERT_OPERATORS");
    return operators != nullptr && std::strcmp(operators, "cuda") == 0;
  });
}

REGISTER_BERT_KERNEL("lamb_update", lamb)
    .SetIsMatchedHob(on_cpu() && is_float("model") && is_float("model_diff") && !as_on_cuda());

// OneFlow's own computes the power in float32, which leaves few digits of the difference to 1.
void bias_correction(KernelComputeContext* context) {
  const double beta = context->Attr<float>("beta");
  *output(context, "out") = static_cast<float>(1.0 - std::pow(beta, *tensor(context, "train_step").dptr<int64_t>() + 1));
}
REGISTER_BERT_KERNEL("adam_bias_correction_factor", bias_correction).SetIsMatchedHob(on_cpu());

// ---- LAMB on CUDA, by kernels of OneFlow's; on a CPU for tests

constexpr int64_t kNorms = 2;

template <DeviceType device, typename Gradient>
void lamb_by_parts(KernelComputeContext* context) {
  check_has_no_penalty(context);
  using Adam = AdamUpdateKernelUtil<device, float, Gradient, float16>;
  using Sgd = SGDUpdateKernelUtil<device, float, float, float16>;
  using Lamb = LambUpdateKernelUtil<device, float, float>;
  ep::Stream* stream = context->stream();
  const int64_t count = count_of(tensor(context, "model"));
  const float beta1 = context->Attr<float>("beta1"), beta2 = context->Attr<float>("beta2");
  const float epsilon = context->Attr<float>("epsilon"), decay = context->Attr<float>("weight_decay");
  const float rate = context->Attr<float>("learning_rate_val"), factor = context->Attr<float>("learning_rate_scale");
  const float* variable_rate = optional_input(context, "learning_rate");
  const int64_t* skip_if = context->has_input("skip_if", 0) ? tensor(context, "skip_if").dptr<int64_t>() : nullptr;
  float *model = output(context, "model"), *m = output(context, "m"), *v = output(context, "v");

  const auto adam = [&](float* to, float own_rate, float own_factor, const float* own_variable_rate) {
    Adam::Update(stream, count, static_cast<float>(context->Attr<double>("scale")), 0.0f, 0.0f, beta1, beta2, epsilon,
                 0.0f, false, context->Attr<bool>("do_bias_correction"), own_rate, own_factor,
                 context->Attr<float>("bias_correction1_val"), context->Attr<float>("bias_correction2_val"),
                 own_variable_rate, optional_input(context, "scale_by_tensor"), skip_if,
                 optional_input(context, "bias_correction1"), optional_input(context, "bias_correction2"),
                 tensor(context, "model_diff").dptr<Gradient>(), to, nullptr, m, v, nullptr);
  };
  if (decay == 0.0f) {
    adam(model, rate, factor, variable_rate);
    return;
  }
  float* step = context->Tensor4ArgNameAndIndex("tmp_buffer", 0)->mut_dptr<float>();
  float *zeros = step + count, *norms = zeros + count;
  Memset<device>(stream, step, 0, 2 * count * sizeof(float));
  adam(step, -1.0f, 1.0f, nullptr);
  Sgd::Update(stream, count, decay, 0.0f, 0.0f, 0.0f, -1.0f, 1.0f, nullptr, nullptr, skip_if, model, step, nullptr);
  // With these constants the moments are the step and 0, and so the step stays what it is.
  constexpr float kNoMemory = 0.0f, kAllMemory = 1.0f, kDenominator = 1.0f;
  Lamb::Update(stream, count, 1.0f, 0.0f, 0.0f, kNoMemory, kAllMemory, kDenominator, 0.0f, rate, factor, false, 1.0f,
               1.0f, variable_rate, nullptr, nullptr, nullptr, skip_if, step, step, model, step, zeros, norms);
}

size_t room_for_parts(user_op::InferContext* context) {
  return (2 * context->InputTensorDesc("model", 0).shape().elem_cnt() + kNorms) * sizeof(float);
}

REGISTER_BERT_KERNEL("lamb_update", (lamb_by_parts<DeviceType::kCPU, float>))
    .SetIsMatchedHob(on_cpu() && is_float("model") && is_float("model_diff") && as_on_cuda())
    .SetInferTmpSizeFn(room_for_parts);
REGISTER_BERT_KERNEL("lamb_update", (lamb_by_parts<DeviceType::kCUDA, float>))
    .SetIsMatchedHob(user_op::HobDeviceType() == DeviceType::kCUDA && is_float("model") && is_float("model_diff"))
    .SetInferTmpSizeFn(room_for_parts);
REGISTER_BERT_KERNEL("lamb_update", (lamb_by_parts<DeviceType::kCUDA, float16>))
    .SetIsMatchedHob(user_op::HobDeviceType() == DeviceType::kCUDA && is_float("model") &&
                     user_op::HobDataType("model_diff", 0) == DataType::kFloat16)
    .SetInferTmpSizeFn(room_for_parts);

}  // namespace
}  // namespace oneflow
