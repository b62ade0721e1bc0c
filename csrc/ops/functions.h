#pragma once

#include "ops/common/arguments.h"

// Functions over tensors that are no rules: each said once, as the rules are in ops/rules.h. The Python functions and
// their stub are made from this. Every one checks its arguments, then changes what its description says; on a CUDA
// device it enqueues kernels on the current stream, and the host waits for nothing.
namespace sage_ext::ops {

struct AnyTensor {
  using Type = at::Tensor;
};

struct PackVotes {
  static constexpr const char* name = "pack_votes";
  static constexpr const char* doc = "Writes `packed`: the signs of a gradient, or of its momentum, as votes.";
  using Arguments = Types<Argument<"grad", AnyTensor>, Argument<"exp_avg", OptionalScalar>,
                          Argument<"packed", AnyTensor>, Argument<"momentum", Beta>>;
  static void run(const at::Tensor& grad, const std::optional<at::Tensor>& exp_avg, const at::Tensor& packed,
                  double momentum);
};

struct CountVotes {
  static constexpr const char* name = "count_votes";
  static constexpr const char* doc = "Writes `result`: what most votes on a piece are, of all voters' in `received`.";
  using Arguments = Types<Argument<"received", AnyTensor>, Argument<"result", AnyTensor>>;
  static void run(const at::Tensor& received, const at::Tensor& result);
};

struct UnpackVotes {
  static constexpr const char* name = "unpack_votes";
  static constexpr const char* doc = "Writes `grad`: -1, 0 and 1, and NaN where a voter's number was not finite.";
  using Arguments = Types<Argument<"packed", AnyTensor>, Argument<"grad", AnyTensor>>;
  static void run(const at::Tensor& packed, const at::Tensor& grad);
};

using Functions = Types<PackVotes, CountVotes, UnpackVotes>;

}  // namespace sage_ext::ops
