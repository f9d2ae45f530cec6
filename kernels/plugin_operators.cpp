// Operators that OneFlow lacks: their definitions, their CPU kernels, and the function through which Python calls them.
// engine/operators.py defines their gradients.
#include <cmath>
#include <cstring>
#include <map>

#include "oneflow/core/framework/op_builder.h"
#include "oneflow/core/framework/op_expr.h"
#include "oneflow/core/framework/tensor_tuple.h"
#include "oneflow/core/framework/user_op_registry_manager.h"
#include "oneflow/core/job/job_build_and_infer_ctx.h"
#include "oneflow/core/job/job_build_and_infer_ctx_mgr.h"

#include "plugin.h"

namespace oneflow {

namespace one {

// Copied declaration: OneFlow's op_interpreter_util.h includes headers that the wheel lacks.
class OpInterpUtil {
 public:
  template <typename T>
  static Maybe<T> Dispatch(const OpExpr& op_expr, const TensorTuple& inputs);
};

}  // namespace one

namespace {

using user_op::InferContext;
using user_op::OpArg;
using user_op::SbpContext;

// ---- random keys

// Makes a key for each forward pass of an operator. The gradient receives it as a tensor with one element per row and so
// draws the same mask. Ranks with different rows draw different masks.
template <void (*compute)(KernelComputeContext*, int64_t key)>
class RandomKernel final : public user_op::OpKernel {
 public:
  std::shared_ptr<user_op::OpKernelState> CreateOpKernelState(user_op::KernelInitContext* context) const override {
    // At rate 0 nothing is drawn. Without a stream, evaluation leaves no trace in the snapshots of training.
    if (context->Attr<float>("rate") == 0.0f) return nullptr;
    return std::make_shared<RandomStream>(context, stream_seed(context, "random"));
  }

 private:
  using user_op::OpKernel::Compute;
  void Compute(KernelComputeContext* context, user_op::OpKernelState* state,
               const user_op::OpKernelCache*) const override {
    const bool draws = context->Attr<float>("rate") > 0.0f;
    compute(context, draws ? CHECK_NOTNULL(dynamic_cast<RandomStream*>(state))->next_key() : 0);
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

int64_t* random_output(KernelComputeContext* context, int64_t key) {
  Tensor* random = context->Tensor4ArgNameAndIndex("random", 0);
  int64_t* keys = random->mut_dptr<int64_t>();
  std::fill(keys, keys + count_of(*random), key);
  return keys;
}

// All tensors are float32, except the random keys.
DataType type_of(const std::string& name) { return name == "random" ? DataType::kInt64 : DataType::kFloat; }

Maybe<void> infer_types(InferContext* context) {
  for (const auto& [name, index] : context->inputs()) {
    CHECK_OR_RETURN(context->InputDType(name, index) == type_of(name))
        << name << " is " << DataType_Name(context->InputDType(name, index)) << ", not " << DataType_Name(type_of(name));
  }
  for (const auto& [name, index] : context->outputs()) { context->SetOutputDType(name, index, type_of(name)); }
  return Maybe<void>::Ok();
}

// The kernels do not check shapes, so the functions below must.
Maybe<void> check_shape(InferContext* context, const char* name, const Shape& expected) {
  const Shape& found = context->InputShape(name, 0);
  CHECK_OR_RETURN(found == expected) << name << " is " << found.DebugStr() << ", not " << expected.DebugStr();
  return Maybe<void>::Ok();
}

Maybe<const Shape*> matrix_shape(InferContext* context, const char* name) {
  const Shape& found = context->InputShape(name, 0);
  CHECK_OR_RETURN(found.NumAxes() == 2) << name << " is " << found.DebugStr() << ", not a matrix";
  return &found;
}

// By default all outputs are dynamic if an input is.
void set_static(InferContext* context, const char* name, const Shape& shape) {
  context->SetOutputShape(name, 0, shape);
  context->SetOutputIsDynamic(name, 0, false);
}

Maybe<void> check_rate(InferContext* context) {
  const float rate = context->Attr<float>("rate");
  CHECK_OR_RETURN(rate >= 0.0f && rate <= 1.0f) << "rate is " << rate << ", not between 0 and 1";
  return Maybe<void>::Ok();
}

// Checks that `rows` may be the rows that the layout `layout` stores. OneFlow also infers shapes while a graph runs, when
// packed tensors have as many rows as there are tokens.
Maybe<void> check_layout(InferContext* context, const char* rows, const char* layout) {
  const Shape& stored = *JUST(matrix_shape(context, rows));
  const Shape& found = *JUST(matrix_shape(context, layout));
  CHECK_OR_RETURN(stored.At(0) == found.elem_cnt() ||
                  (context->InputIsDynamic(rows, 0) && stored.At(0) < found.elem_cnt()))
      << rows << " is " << stored.DebugStr() << ", which are not the tokens of " << layout << ", " << found.DebugStr();
  return Maybe<void>::Ok();
}

#define REGISTER_BERT_OPERATOR_KERNEL(name, kernel, ...) \
  REGISTER_USER_KERNEL(name).SetCreateFn<kernel<__VA_ARGS__>>().SetIsMatchedHob(on_cpu());

// ---- attention; see bert_attention in kernels.h

BertAttention attention_shape(KernelComputeContext* context) {
  const auto& mask = tensor(context, "mask").shape_view();
  const int64_t heads = context->Attr<int64_t>("heads");
  return {mask.At(0), mask.At(1), heads, last_dimension(tensor(context, "query")) / heads,
          context->Attr<float>("rate")};
}

void attention(KernelComputeContext* context, int64_t key) {
  const BertAttention shape = attention_shape(context);
  bert_attention(&shape, input(context, "query"), input(context, "key"), input(context, "value"),
                 input(context, "mask"), random_output(context, key), output(context, "out"));
}

void attention_grad(KernelComputeContext* context) {
  const BertAttention shape = attention_shape(context);
  bert_attention_grad(&shape, input(context, "dout"), input(context, "query"), input(context, "key"),
                      input(context, "value"), input(context, "mask"), tensor(context, "random").dptr<int64_t>(),
                      output(context, "dquery"), output(context, "dkey"), output(context, "dvalue"));
}

// Returns the shape of the query if all inputs match it.
Maybe<const Shape*> check_attention(InferContext* context) {
  const Shape* query = JUST(matrix_shape(context, "query"));
  JUST(check_layout(context, "query", "mask"));
  JUST(check_shape(context, "key", *query));
  JUST(check_shape(context, "value", *query));
  const int64_t heads = context->Attr<int64_t>("heads");
  CHECK_OR_RETURN(heads > 0 && query->At(1) > 0 && query->At(1) % heads == 0)
      << "query is " << query->DebugStr() << ", whose columns " << heads << " heads cannot share";
  JUST(check_rate(context));
  return query;
}

REGISTER_USER_OP("bert_attention")
    .Input("query").Input("key").Input("value").Input("mask")
    .Output("out").Output("random")
    .Attr<int64_t>("heads", 1)
    .Attr<float>("rate", 0.0f)
    .SetTensorDescInferFn([](InferContext* context) -> Maybe<void> {
      const Shape query = *JUST(check_attention(context));
      context->SetOutputShape("out", 0, query);
      context->SetOutputShape("random", 0, Shape({query.At(0)}));
      return Maybe<void>::Ok();
    })
    .SetGetSbpFn([](SbpContext* context) -> Maybe<void> {
      context->NewBuilder().Split(context->inputs(), 0).Split(context->outputs(), 0).Build();
      return Maybe<void>::Ok();
    })
    .SetDataTypeInferFn(infer_types);

REGISTER_BERT_OPERATOR_KERNEL("bert_attention", RandomKernel, attention)

REGISTER_USER_OP("bert_attention_grad")
    .Input("dout").Input("query").Input("key").Input("value").Input("mask").Input("random")
    .Output("dquery").Output("dkey").Output("dvalue")
    .Attr<int64_t>("heads", 1)
    .Attr<float>("rate", 0.0f)
    .SetTensorDescInferFn([](InferContext* context) -> Maybe<void> {
      const Shape query = *JUST(check_attention(context));
      JUST(check_shape(context, "dout", query));
      JUST(check_shape(context, "random", Shape({query.At(0)})));
      for (const char* name : {"dquery", "dkey", "dvalue"}) { context->SetOutputShape(name, 0, query); }
      return Maybe<void>::Ok();
    })
    .SetGetSbpFn([](SbpContext* context) -> Maybe<void> {
      context->NewBuilder().Split(context->inputs(), 0).Split(context->outputs(), 0).Build();
      return Maybe<void>::Ok();
    })
    .SetDataTypeInferFn(infer_types);

REGISTER_BERT_OPERATOR_KERNEL("bert_attention_grad", Kernel, attention_grad)

// ---- bias, dropout, residual and normalisation; see bert_residual_norm

// The places of packed rows in the batch, by which random bits are drawn.
class Places {
 public:
  Places(KernelComputeContext* context, int64_t rows) {
    const auto& layout = tensor(context, "layout").shape_view();
    if (context->Attr<float>("rate") == 0.0f || rows == layout.elem_cnt()) { return; }
    places_.resize(rows);
    bert_stored_rows(layout.At(0), layout.At(1), input(context, "layout"), places_.data());
  }
  // Null if each row is at its place.
  const int64_t* data() const { return places_.empty() ? nullptr : places_.data(); }

 private:
  std::vector<int64_t> places_;
};

void residual_norm(KernelComputeContext* context, int64_t key) {
  const Tensor& x = tensor(context, "x");
  const int64_t rows = rows_of(x);
  bert_residual_norm(rows, last_dimension(x), context->Attr<float>("rate"), context->Attr<double>("epsilon"),
                     x.dptr<float>(), input(context, "bias"), input(context, "residual"), input(context, "gamma"),
                     input(context, "beta"), random_output(context, key), Places(context, rows).data(),
                     output(context, "y"), output(context, "normalised"), output(context, "inverse_deviation"));
}

void residual_norm_grad(KernelComputeContext* context) {
  const Tensor& dy = tensor(context, "dy");
  const int64_t rows = rows_of(dy);
  bert_residual_norm_grad(rows, last_dimension(dy), context->Attr<float>("rate"), dy.dptr<float>(),
                          input(context, "normalised"), input(context, "inverse_deviation"), input(context, "gamma"),
                          tensor(context, "random").dptr<int64_t>(), Places(context, rows).data(),
                          output(context, "dx"), output(context, "dresidual"), output(context, "dbias"),
                          output(context, "dgamma"), output(context, "dbeta"));
}

REGISTER_USER_OP("bert_residual_norm")
    .Input("x").Input("bias").Input("residual").Input("gamma").Input("beta").Input("layout")
    .Output("y").Output("normalised").Output("inverse_deviation").Output("random")
    .Attr<float>("rate", 0.0f)
    .Attr<double>("epsilon", 1e-12)
    .SetTensorDescInferFn([](InferContext* context) -> Maybe<void> {
      const Shape x = *JUST(matrix_shape(context, "x"));
      JUST(check_shape(context, "residual", x));
      for (const char* name : {"bias", "gamma", "beta"}) { JUST(check_shape(context, name, Shape({x.At(1)}))); }
      JUST(check_layout(context, "x", "layout"));
      JUST(check_rate(context));
      context->SetOutputShape("y", 0, x);
      context->SetOutputShape("normalised", 0, x);
      context->SetOutputShape("inverse_deviation", 0, Shape({x.At(0)}));
      context->SetOutputShape("random", 0, Shape({x.At(0)}));
      return Maybe<void>::Ok();
    })
    .SetGetSbpFn([](SbpContext* context) -> Maybe<void> {
      context->NewBuilder()
          .Split({OpArg("x", 0), OpArg("residual", 0), OpArg("layout", 0)}, 0)
          .Broadcast({OpArg("bias", 0), OpArg("gamma", 0), OpArg("beta", 0)})
          .Split(context->outputs(), 0)
          .Build();
      return Maybe<void>::Ok();
    })
    .SetDataTypeInferFn(infer_types);

REGISTER_BERT_OPERATOR_KERNEL("bert_residual_norm", RandomKernel, residual_norm)

REGISTER_USER_OP("bert_residual_norm_grad")
    .Input("dy").Input("normalised").Input("inverse_deviation").Input("gamma").Input("random").Input("layout")
    .Output("dx").Output("dresidual").Output("dbias").Output("dgamma").Output("dbeta")
    .Attr<float>("rate", 0.0f)
    .SetTensorDescInferFn([](InferContext* context) -> Maybe<void> {
      const Shape dy = *JUST(matrix_shape(context, "dy"));
      JUST(check_shape(context, "normalised", dy));
      JUST(check_shape(context, "gamma", Shape({dy.At(1)})));
      for (const char* name : {"inverse_deviation", "random"}) {
        JUST(check_shape(context, name, Shape({dy.At(0)})));
      }
      JUST(check_layout(context, "dy", "layout"));
      JUST(check_rate(context));
      for (const char* name : {"dx", "dresidual"}) { context->SetOutputShape(name, 0, dy); }
      for (const char* name : {"dbias", "dgamma", "dbeta"}) {
        context->SetOutputShape(name, 0, context->InputShape("gamma", 0));
      }
      return Maybe<void>::Ok();
    })
    .SetGetSbpFn([](SbpContext* context) -> Maybe<void> {
      context->NewBuilder()
          .Split({OpArg("dy", 0), OpArg("normalised", 0), OpArg("inverse_deviation", 0), OpArg("random", 0),
                  OpArg("layout", 0)}, 0)
          .Broadcast(OpArg("gamma", 0))
          .Split({OpArg("dx", 0), OpArg("dresidual", 0)}, 0)
          .PartialSum({OpArg("dbias", 0), OpArg("dgamma", 0), OpArg("dbeta", 0)})
          .Build();
      return Maybe<void>::Ok();
    })
    .SetDataTypeInferFn(infer_types);

REGISTER_BERT_OPERATOR_KERNEL("bert_residual_norm_grad", Kernel, residual_norm_grad)

// ---- the gradient of fused_bias_add_gelu by both inputs; see bert_bias_gelu_grad

void both_bias_gelu_grads(KernelComputeContext* context) {
  const Tensor& x = tensor(context, "x");
  bert_bias_gelu_grad(rows_of(x), last_dimension(x), x.dptr<float>(), input(context, "bias"), input(context, "dy"),
                      output(context, "dx"), output(context, "dbias"));
}

REGISTER_USER_OP("bert_bias_gelu_grad")
    .Input("x").Input("bias").Input("dy")
    .Output("dx").Output("dbias")
    .SetTensorDescInferFn([](InferContext* context) -> Maybe<void> {
      const Shape x = *JUST(matrix_shape(context, "x"));
      JUST(check_shape(context, "dy", x));
      JUST(check_shape(context, "bias", Shape({x.At(1)})));
      context->SetOutputShape("dx", 0, x);
      context->SetOutputShape("dbias", 0, Shape({x.At(1)}));
      return Maybe<void>::Ok();
    })
    .SetGetSbpFn([](SbpContext* context) -> Maybe<void> {
      context->NewBuilder()
          .Split({OpArg("x", 0), OpArg("dy", 0)}, 0)
          .Broadcast(OpArg("bias", 0))
          .Split(OpArg("dx", 0), 0)
          .PartialSum(OpArg("dbias", 0))
          .Build();
      return Maybe<void>::Ok();
    })
    .SetDataTypeInferFn(infer_types);

REGISTER_BERT_OPERATOR_KERNEL("bert_bias_gelu_grad", Kernel, both_bias_gelu_grads)

// ---- x weight + bias; see bert_linear

void linear(KernelComputeContext* context) {
  const Tensor& x = tensor(context, "x");
  const Tensor& out = tensor(context, "out");
  bert_linear(rows_of(x), last_dimension(x), last_dimension(out), x.dptr<float>(), input(context, "weight"),
              input(context, "bias"), output(context, "out"));
}

Maybe<void> infer_linear(InferContext* context) {
  const Shape x = *JUST(matrix_shape(context, "x")), weight = *JUST(matrix_shape(context, "weight"));
  CHECK_OR_RETURN(x.At(1) == weight.At(0))
      << "x is " << x.DebugStr() << ", which weight, " << weight.DebugStr() << ", cannot multiply";
  if (context->has_input("bias", 0)) { JUST(check_shape(context, "bias", Shape({weight.At(1)}))); }
  context->SetOutputShape("out", 0, Shape({x.At(0), weight.At(1)}));
  return Maybe<void>::Ok();
}

Maybe<void> split_rows_of_x(SbpContext* context) {
  context->NewBuilder().Broadcast(context->inputs()).Split(OpArg("x", 0), 0).Split(OpArg("out", 0), 0).Build();
  return Maybe<void>::Ok();
}

REGISTER_USER_OP("bert_linear")
    .Input("x").Input("weight").Input("bias")
    .Output("out")
    .SetTensorDescInferFn(infer_linear)
    .SetGetSbpFn(split_rows_of_x)
    .SetDataTypeInferFn(infer_types);

REGISTER_BERT_OPERATOR_KERNEL("bert_linear", Kernel, linear)

// ---- x weight (+ bias) in int8; see bert_int8_linear

using Int8Weight = std::shared_ptr<BertInt8Weight>;

// Returns a weight in int8. It is rounded once for all operators that use its memory.
Int8Weight in_int8(const Tensor& weight) {
  static std::mutex mutex;
  static std::map<const float*, std::weak_ptr<BertInt8Weight>> in_use;
  std::lock_guard<std::mutex> lock(mutex);
  std::weak_ptr<BertInt8Weight>& known = in_use[weight.dptr<float>()];
  Int8Weight rounded = known.lock();
  if (!rounded) {
    rounded.reset(bert_round_to_int8(rows_of(weight), last_dimension(weight), weight.dptr<float>()), bert_free_int8);
    known = rounded;
  }
  return rounded;
}

// Rounds the weight when the graph first runs; what changes it later has no effect.
class Int8Linear final : public user_op::OpKernel {
 public:
  std::shared_ptr<user_op::OpKernelState> CreateOpKernelState(user_op::KernelInitContext*) const override {
    return std::make_shared<State>();
  }

 private:
  struct State final : public user_op::OpKernelState {
    Int8Weight weight;
  };

  using user_op::OpKernel::Compute;
  void Compute(KernelComputeContext* context, user_op::OpKernelState* state,
               const user_op::OpKernelCache*) const override {
    Int8Weight& weight = CHECK_NOTNULL(dynamic_cast<State*>(state))->weight;
    if (!weight) { weight = in_int8(tensor(context, "weight")); }
    const Tensor& x = tensor(context, "x");
    bert_int8_linear(rows_of(x), x.dptr<float>(), weight.get(), optional_input(context, "bias"),
                     output(context, "out"));
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

REGISTER_USER_OP("bert_int8_linear")
    .Input("x").Input("weight").OptionalInput("bias")
    .Output("out")
    .SetTensorDescInferFn([](InferContext* context) -> Maybe<void> {
      JUST(infer_linear(context));
      const int64_t inputs = context->InputShape("weight", 0).At(0);
      CHECK_OR_RETURN(inputs <= kMostInt8Inputs) << inputs << " inputs are more than " << kMostInt8Inputs;
      return Maybe<void>::Ok();
    })
    .SetGetSbpFn(split_rows_of_x)
    .SetDataTypeInferFn(infer_types);

REGISTER_USER_KERNEL("bert_int8_linear").SetCreateFn<Int8Linear>().SetIsMatchedHob(on_cpu());

// ---- the gradients of x weight + bias by weight and bias

void linear_grad(KernelComputeContext* context) {
  const Tensor& x = tensor(context, "x");
  const Tensor& dout = tensor(context, "dout");
  const int64_t rows = rows_of(x), inputs = last_dimension(x), outputs = last_dimension(dout);
  bert_matmul(true, false, 1, inputs, outputs, rows, 1.0f, x.dptr<float>(), inputs, 0, dout.dptr<float>(), outputs, 0,
              0.0f, output(context, "dweight"), outputs, 0);
  bert_sum_rows(rows, outputs, dout.dptr<float>(), output(context, "dbias"));
}

// OneFlow's own products would give gradients of parameters whose shape it takes for dynamic, as that of packed rows is.
REGISTER_USER_OP("bert_linear_grad")
    .Input("x").Input("dout")
    .Output("dweight").Output("dbias")
    .SetTensorDescInferFn([](InferContext* context) -> Maybe<void> {
      const Shape x = *JUST(matrix_shape(context, "x")), dout = *JUST(matrix_shape(context, "dout"));
      CHECK_OR_RETURN(x.At(0) == dout.At(0))
          << "x is " << x.DebugStr() << ", whose rows dout, " << dout.DebugStr() << ", does not have";
      set_static(context, "dweight", Shape({x.At(1), dout.At(1)}));
      set_static(context, "dbias", Shape({dout.At(1)}));
      return Maybe<void>::Ok();
    })
    .SetGetSbpFn([](SbpContext* context) -> Maybe<void> {
      context->NewBuilder().Split(context->inputs(), 0).PartialSum(context->outputs()).Build();
      return Maybe<void>::Ok();
    })
    .SetDataTypeInferFn(infer_types);

REGISTER_BERT_OPERATOR_KERNEL("bert_linear_grad", Kernel, linear_grad)

// ---- packed sequences; see bert_layout, bert_pack and bert_unpack

void layout(KernelComputeContext* context) {
  const auto& shape = tensor(context, "input_mask").shape_view();
  bert_layout(shape.At(0), shape.At(1), input(context, "input_mask"), output(context, "layout"));
}

REGISTER_USER_OP("bert_layout")
    .Input("input_mask")
    .Output("layout")
    .SetTensorDescInferFn([](InferContext* context) -> Maybe<void> {
      context->SetOutputShape("layout", 0, *JUST(matrix_shape(context, "input_mask")));
      return Maybe<void>::Ok();
    })
    .SetGetSbpFn([](SbpContext* context) -> Maybe<void> {
      context->NewBuilder().Split(context->inputs(), 0).Split(context->outputs(), 0).Build();
      return Maybe<void>::Ok();
    })
    .SetDataTypeInferFn(infer_types);

REGISTER_BERT_OPERATOR_KERNEL("bert_layout", Kernel, layout)

void pack(KernelComputeContext* context) {
  const auto& shape = tensor(context, "layout").shape_view();
  const float* layout = input(context, "layout");
  const int64_t columns = last_dimension(tensor(context, "x"));
  const int64_t rows = bert_stored_rows(shape.At(0), shape.At(1), layout, nullptr);
  // Possible in graphs only.
  if (rows < shape.elem_cnt()) { context->Tensor4ArgNameAndIndex("out", 0)->mut_shape_view().Set(0, rows); }
  bert_pack(shape.At(0), shape.At(1), columns, layout, input(context, "x"), output(context, "out"));
}

// The output has at most as many rows as its static shape says, room for a batch without padding. OneFlow infers the shapes
// of what is computed from it each time.
REGISTER_USER_OP("bert_pack")
    .Input("x").Input("layout")
    .Output("out")
    .SetTensorDescInferFn([](InferContext* context) -> Maybe<void> {
      const Shape& x = context->InputShape("x", 0);
      const int64_t rows = JUST(matrix_shape(context, "layout"))->elem_cnt();
      CHECK_OR_RETURN(x.NumAxes() >= 2 && x.Count(0, x.NumAxes() - 1) == rows)
          << "x is " << x.DebugStr() << ", which are not the tokens of layout, "
          << context->InputShape("layout", 0).DebugStr();
      context->SetOutputShape("out", 0, Shape({rows, x.At(x.NumAxes() - 1)}));
      context->SetOutputIsDynamic("out", 0, true);
      return Maybe<void>::Ok();
    })
    .SetGetSbpFn([](SbpContext* context) -> Maybe<void> {
      context->NewBuilder().Split(context->inputs(), 0).Split(context->outputs(), 0).Build();
      return Maybe<void>::Ok();
    })
    .SetDataTypeInferFn(infer_types);

REGISTER_BERT_OPERATOR_KERNEL("bert_pack", Kernel, pack)

void unpack(KernelComputeContext* context) {
  const auto& shape = tensor(context, "layout").shape_view();
  bert_unpack(shape.At(0), shape.At(1), last_dimension(tensor(context, "x")), input(context, "layout"),
              input(context, "x"), output(context, "out"));
}

REGISTER_USER_OP("bert_unpack")
    .Input("x").Input("layout")
    .Output("out")
    .SetTensorDescInferFn([](InferContext* context) -> Maybe<void> {
      JUST(check_layout(context, "x", "layout"));
      const Shape& layout = context->InputShape("layout", 0);
      set_static(context, "out", Shape({layout.At(0), layout.At(1), context->InputShape("x", 0).At(1)}));
      return Maybe<void>::Ok();
    })
    .SetGetSbpFn([](SbpContext* context) -> Maybe<void> {
      context->NewBuilder().Split(context->inputs(), 0).Split(context->outputs(), 0).Build();
      return Maybe<void>::Ok();
    })
    .SetDataTypeInferFn(infer_types);

REGISTER_BERT_OPERATOR_KERNEL("bert_unpack", Kernel, unpack)

// Copies a gradient of a parameter whose shape OneFlow takes for dynamic, since an operator's outputs must all be dynamic
// or all static.
void static_copy(KernelComputeContext* context) {
  const Tensor& x = tensor(context, "x");
  std::memcpy(output(context, "out"), x.dptr<float>(), count_of(x) * sizeof(float));
}

REGISTER_USER_OP("bert_static_copy")
    .Input("x")
    .Output("out")
    .SetTensorDescInferFn([](InferContext* context) -> Maybe<void> {
      set_static(context, "out", context->InputShape("x", 0));
      return Maybe<void>::Ok();
    })
    .SetGetSbpFn([](SbpContext* context) -> Maybe<void> {
      context->NewBuilder().PartialSum(context->inputs()).PartialSum(context->outputs()).Build();
      return Maybe<void>::Ok();
    })
    .SetDataTypeInferFn(infer_types);

REGISTER_BERT_OPERATOR_KERNEL("bert_static_copy", Kernel, static_copy)

// ---- sums over the ranks of a machine; see bert_sum_over_ranks

// The float arrays of a list of tensors.
struct List {
  std::vector<int64_t> counts;
  std::vector<float*> arrays;
};

List list_of(KernelComputeContext* context, const char* name, int32_t size) {
  List list;
  for (int32_t i = 0; i < size; ++i) {
    Tensor* array = CHECK_NOTNULL(context->Tensor4ArgNameAndIndex(name, i));
    list.counts.push_back(count_of(*array));
    // Inputs are only read.
    list.arrays.push_back(const_cast<float*>(static_cast<const Tensor*>(array)->dptr<float>()));
  }
  return list;
}

void sum_over_ranks(KernelComputeContext* context) {
  const List in = list_of(context, "in", context->input_size("in")), out = list_of(context, "out", in.counts.size());
  bert_sum_over_ranks(in.counts.size(), in.counts.data(), in.arrays.data(), out.arrays.data());
}

void scatter_over_ranks(KernelComputeContext* context) {
  const List in = list_of(context, "in", context->input_size("in"));
  bert_scatter_over_ranks(in.counts.size(), in.counts.data(), in.arrays.data(), output(context, "slices"));
}

void gather_over_ranks(KernelComputeContext* context) {
  const List out = list_of(context, "out", context->output_size("out"));
  bert_gather_over_ranks(out.counts.size(), out.counts.data(), input(context, "slices"), out.arrays.data());
}

enum class Sbp { kPartial, kBroadcast, kSplit };

// Sets how a tensor is distributed, along each axis of the hierarchy of ranks.
void distribute(NdSbp* signature, const std::vector<Sbp>& axes) {
  signature->clear_sbp_parallel();
  for (const Sbp axis : axes) {
    SbpParallel* made = signature->add_sbp_parallel();
    if (axis == Sbp::kPartial) { made->mutable_partial_sum_parallel(); }
    if (axis == Sbp::kBroadcast) { made->mutable_broadcast_parallel(); }
    if (axis == Sbp::kSplit) { made->mutable_split_parallel()->set_axis(0); }
  }
}

// By name. Without it OneFlow would also choose broadcast inputs, which are not to be added.
auto distribution(std::map<std::string, std::vector<Sbp>> of) {
  return [of](user_op::InferNdSbpFnContext* context) -> Maybe<void> {
    for (const auto* arguments : {&context->inputs(), &context->outputs()}) {
      for (const auto& [name, index] : *arguments) {
        distribute(context->NdSbp4ArgNameAndIndex(name, index), of.at(name));
      }
    }
    return Maybe<void>::Ok();
  };
}

// OneFlow wants such a function, but distribution() decides.
Maybe<void> no_other_distribution(SbpContext*) { return Maybe<void>::Ok(); }

Maybe<void> shapes_of_list(InferContext* context, const std::string& list) {
  for (const auto& [name, index] : context->outputs()) {
    context->SetOutputShape(name, index, context->InputShape(list, index));
  }
  return Maybe<void>::Ok();
}

REGISTER_USER_OP("bert_sum_over_ranks")
    .Input("in")
    .Output("out")
    .SetLogicalTensorDescInferFn([](InferContext* context) { return shapes_of_list(context, "in"); })
    .SetNdSbpInferFn(distribution({{"in", {Sbp::kPartial}}, {"out", {Sbp::kBroadcast}}}))
    .SetGetSbpFn(no_other_distribution)
    .SetDataTypeInferFn(infer_types);

REGISTER_BERT_OPERATOR_KERNEL("bert_sum_over_ranks", Kernel, sum_over_ranks)

// With several machines the axes of the ranks' hierarchy are machines, and ranks of a machine.
REGISTER_USER_OP("bert_scatter_over_ranks")
    .Input("in")
    .Output("slices")
    .SetLogicalTensorDescInferFn([](InferContext* context) -> Maybe<void> {
      int64_t count = 0;
      for (const auto& [name, index] : context->inputs()) { count += context->InputShape(name, index).elem_cnt(); }
      const int64_t ranks = context->parallel_desc().hierarchy()->At(1);
      context->SetOutputShape("slices", 0, Shape({ranks * bert_slices_size(count, ranks)}));
      return Maybe<void>::Ok();
    })
    .SetNdSbpInferFn(distribution({{"in", {Sbp::kPartial, Sbp::kPartial}}, {"slices", {Sbp::kPartial, Sbp::kSplit}}}))
    .SetGetSbpFn(no_other_distribution)
    .SetDataTypeInferFn(infer_types);

REGISTER_BERT_OPERATOR_KERNEL("bert_scatter_over_ranks", Kernel, scatter_over_ranks)

// The outputs have the shapes of `like`.
REGISTER_USER_OP("bert_gather_over_ranks")
    .Input("slices")
    .Input("like")
    .Output("out")
    .SetLogicalTensorDescInferFn([](InferContext* context) { return shapes_of_list(context, "like"); })
    .SetNdSbpInferFn(distribution({{"slices", {Sbp::kBroadcast, Sbp::kSplit}},
                                   {"like", {Sbp::kPartial, Sbp::kPartial}},
                                   {"out", {Sbp::kBroadcast, Sbp::kBroadcast}}}))
    .SetGetSbpFn(no_other_distribution)
    .SetDataTypeInferFn(infer_types);

REGISTER_BERT_OPERATOR_KERNEL("bert_gather_over_ranks", Kernel, gather_over_ranks)

bool waits_for_ranks(const std::string& name) {
  return name == "bert_sum_over_ranks" || name == "bert_scatter_over_ranks" || name == "bert_gather_over_ranks";
}

// Gives the operator that has just been added to a graph a thread of its own. A sum waits for the other ranks. In the thread
// of the other operators it would hold up those that the other ranks need to arrive: rank 0 may read their batches.
Maybe<void> give_own_thread(const std::string& name) {
  const Job& job = JUST(GetCurInferCtx())->job();
  CHECK_OR_RETURN(job.net().op_size() > 0 && job.net().op().rbegin()->user_conf().op_type_name() == name);
  const_cast<Job&>(job).mutable_net()->mutable_op()->rbegin()->set_stream_name_hint("bert_ranks");
  return Maybe<void>::Ok();
}

// ---- calls from Python

// OneFlow's PyTensorObject, whose header the wheel lacks, declared without Python's headers.
struct PythonTensor {
  void* python_head[2];
  std::shared_ptr<one::Tensor> data;
};

// Attributes passed from Python.
struct Attributes {
  int64_t heads;
  float rate;
  double epsilon;
};

// Operators whose last argument is a list of tensors, which OneFlow's definition of an operator does not say.
bool takes_list(const std::string& name) { return name == "multi_reduce_sum_pow_abs" || waits_for_ranks(name); }

// Returns the operator with this number of inputs and these attributes; creates it on first use.
Maybe<one::UserOpExpr> find_operator(const std::string& name, int inputs, const Attributes& attributes) {
  static std::mutex mutex;
  static std::map<std::tuple<std::string, int, int64_t, float, double>, std::shared_ptr<one::UserOpExpr>> made;
  std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(name, inputs, attributes.heads, attributes.rate, attributes.epsilon);
  std::shared_ptr<one::UserOpExpr> found = made[key];
  if (!found) {
    const user_op::OpRegistryResult* definition = user_op::UserOpRegistryMgr::Get().GetOpRegistryResult(name);
    CHECK_OR_RETURN(definition != nullptr) << "there is no such operator";
    const bool takes_a_list = takes_list(name);
    const bool gives_list = waits_for_ranks(name) && definition->op_def.output(0).name() == "out";
    int arguments = definition->op_def.input_size();
    if (inputs < arguments && definition->op_def.input(arguments - 1).is_optional()) { --arguments; }
    const int in_list = takes_a_list ? inputs - arguments + 1 : 1;
    const int expected = takes_a_list ? std::max(arguments, inputs) : arguments;
    CHECK_OR_RETURN(inputs == expected) << "it takes " << expected << " tensors, not " << inputs;
    one::OpBuilder builder(name);
    for (int i = 0; i < arguments; ++i) {
      builder.Input(definition->op_def.input(i).name(), i == arguments - 1 ? in_list : 1);
    }
    for (const auto& argument : definition->op_def.output()) { builder.Output(argument.name(), gives_list ? in_list : 1); }
    for (const auto& attribute : definition->op_def.attr()) {
      if (attribute.name() == "heads") { builder.Attr<int64_t>("heads", attributes.heads); }
      if (attribute.name() == "rate") { builder.Attr<float>("rate", attributes.rate); }
      if (attribute.name() == "epsilon") { builder.Attr<double>("epsilon", attributes.epsilon); }
      if (attribute.name() == "scale") {  // of dropout
        builder.Attr<float>("scale", attributes.rate < 1.0f ? 1.0f / (1.0f - attributes.rate) : 0.0f);
      }
      if (attribute.name() == "p") { builder.Attr<float>("p", 2.0f); }  // squares
    }
    found = JUST(builder.Build());
    made[key] = found;
  }
  return found;
}

Maybe<one::TensorTuple> apply(const std::string& name, const Attributes& attributes,
                              const one::TensorTuple& arguments) {
  for (const auto& argument : arguments) {
    CHECK_OR_RETURN(argument != nullptr) << "a tensor holds nothing";
  }
  const auto definition = JUST(find_operator(name, arguments.size(), attributes));
  const auto results = JUST(one::OpInterpUtil::Dispatch<one::TensorTuple>(*definition, arguments));
  if (waits_for_ranks(name)) { JUST(give_own_thread(name)); }
  return results;
}

}  // namespace
}  // namespace oneflow

// Applies the operator `name` to Python tensors. Writes new references to its outputs to `outputs`, which has room for as
// many as there are inputs and for at least 8, created with `new_tensor` (OneFlow's PyTensor_New). Returns their number, or
// -1 on failure, with the reason in `error`.
BERT_KERNEL int bert_apply(const char* name, int64_t heads, float rate, double epsilon,
                           void* (*new_tensor)(const std::shared_ptr<oneflow::one::Tensor>&), int inputs,
                           oneflow::PythonTensor* const* input, void** outputs, char* error, int64_t capacity) {
  using namespace oneflow;
  try {
    one::TensorTuple arguments;
    for (int i = 0; i < inputs; ++i) { arguments.emplace_back(input[i]->data); }
    const auto results = CHECK_JUST(apply(name, {heads, rate, epsilon}, arguments));
    for (size_t i = 0; i < results->size(); ++i) { outputs[i] = new_tensor((*results)[i]); }
    return results->size();
  } catch (const std::exception& exception) {
    std::snprintf(error, capacity, "%s", exception.what());
    return -1;
  }
}
