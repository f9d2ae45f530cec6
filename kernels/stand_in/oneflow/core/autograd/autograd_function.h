// The one name that OneFlow's op_expr.h uses of this header, which the wheel lacks.
#pragma once
#include <functional>
#include <memory>

namespace oneflow {
namespace one {

class FunctionAutoGradCaptureState;
class TensorTuple;

class AutogradFunctionBase {
 public:
  using FType =
      std::function<std::shared_ptr<TensorTuple>(const std::shared_ptr<FunctionAutoGradCaptureState>&, const TensorTuple&)>;
};

}  // namespace one
}  // namespace oneflow
