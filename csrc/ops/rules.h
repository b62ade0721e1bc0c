#pragma once

#include <memory>

#include "ops/common/arguments.h"

// The rules over tensors, each said once: its name, what it takes, and the plan that comes of it. The Python functions,
// torch.ops.sage_ext.*, and the stub sage_ext/_C.pyi are made from this (ops/common/signature.h, bindings.cpp,
// tools/stub.py).
//
// plan() checks every argument and changes nothing; the plan that it returns holds the tensors, and run() carries it
// out. Several plans can so be checked before the first one runs.
//
// All tensors of a plan are on one device. On a CUDA device run() enqueues kernels on that device's current stream
// and returns: the host reads no value there and waits for nothing, so a CUDA graph can capture it.
namespace sage_ext::ops {

// Where the parameters of a plan are pieces of tensors that lie on several processes, all cut alike.
struct Cut {
  std::vector<std::vector<int64_t>> shapes;  // of the whole parameters
  bool rows, columns;                        // what other processes have the rest of
};

// What the processes have to add up before a step can go on: a buffer for each parameter, of what was summed over its
// "rows" or its "columns".
struct Exchange {
  const char* over;
  TensorList buffers;
};

class Plan {
 public:
  virtual ~Plan() = default;
  virtual void run() = 0;
  // In place of run(), for pieces: begin(), and then proceed() until there is nothing to exchange. Rows are dimension
  // 0, or the last but one where a rule sees a tensor of more than two as a stack of matrices; columns are what
  // follows.
  virtual void begin(Cut&& cut) = 0;
  virtual std::optional<Exchange> proceed() = 0;
};
using PlanPtr = std::unique_ptr<Plan>;

// What every rule takes. A rule's own lists follow these, its own arguments stand between `First` and `Last`; what has
// a default comes after what has none.
struct Common {
  using Lists = Types<List<"params">, List<"grads", Access::read>>;
  using First = Types<Argument<"lr", Rate>>;
  using Last = Types<Argument<"weight_decay", NotNegative>,         // decoupled: W <- W * (1 - lr * weight_decay) - ...
                     Argument<"maximize", Flag, false>,             // gradients are negated on load
                     Argument<"grad_scale", OptionalScalar, none>,  // gradients are divided by it on load
                     Argument<"found_inf", OptionalScalar, none>>;  // where it is not 0, the step changes nothing
};

struct CommonCall : Values<Joined<Common::Lists, Common::First, Common::Last>> {
  Describe describe;
  bool are_known = false;  // a plan has accepted tensors like these: see KnownTensors
};

// The arguments of one call: those of every rule, and the rule's own.
template <typename Rule>
struct Call {
  CommonCall common;
  Values<Joined<typename Rule::States, typename Rule::Arguments>> own;
};

struct Sage {
  static constexpr const char* name = "sage";
  static constexpr const char* doc = "One SAGE step, in place.";
  using States = Types<List<"exp_avgs">, List<"s_ranges">, List<"steps">>;
  using Arguments = Types<Argument<"beta1", Beta>, Argument<"beta2", Beta>, Argument<"eps", NotNegative>,
                          Argument<"momentum_first", Flag, false>, Argument<"instant_damper", Flag, true>>;
  static PlanPtr plan(Call<Sage>&& call);
};

struct SinkGD {
  static constexpr const char* name = "sinkgd";
  static constexpr const char* doc = "One SinkGD step, in place.";
  using States = Types<>;
  using Arguments =
      Types<Argument<"iterations", Integer<1, 1000>>, Argument<"alpha", NotNegative>, Argument<"eps", NotNegative>,
            Argument<"normalization", Choice<"sqrt", "unit">, Text("sqrt")>>;
  static PlanPtr plan(Call<SinkGD>&& call);
};

struct Lion {
  static constexpr const char* name = "lion";
  static constexpr const char* doc = "One Lion step, in place.";
  using States = Types<List<"exp_avgs">>;
  using Arguments = Types<Argument<"beta1", Beta>, Argument<"beta2", Beta>>;
  static PlanPtr plan(Call<Lion>&& call);
};

struct SignSGD {
  static constexpr const char* name = "sign_sgd";
  static constexpr const char* doc = "One step of Sign-SGD or, with momentum, Signum, in place.";
  using States = Types<List<"exp_avgs">>;  // empty without momentum
  using Arguments = Types<Argument<"momentum", Beta>>;
  static PlanPtr plan(Call<SignSGD>&& call);
};

// 1: a norm for every row, over the last dimension; 0: a norm for every column.
struct NormDim {
  using Type = int64_t;
  static void check(const char* name, int64_t value);
};

struct Scale {
  static constexpr const char* name = "scale";
  static constexpr const char* doc = "One SCALE step, in place.";
  using States = Types<List<"exp_avgs">>;  // empty without momentum
  using Arguments = Types<Argument<"momentum", Beta>, Argument<"dim", NormDim>, Argument<"eps", NotNegative>,
                          Argument<"normalization", Choice<"rms", "l2">, Text("rms")>>;
  static PlanPtr plan(Call<Scale>&& call);
};

struct AdamW {
  static constexpr const char* name = "adamw";
  static constexpr const char* doc = "One AdamW step, in place.";
  using States = Types<List<"exp_avgs">, List<"exp_avg_sqs">, List<"steps">>;
  using Arguments = Types<Argument<"beta1", Beta>, Argument<"beta2", Beta>, Argument<"eps", NotNegative>>;
  static PlanPtr plan(Call<AdamW>&& call);
};

struct Alias {
  static constexpr const char* name = "alias";
  static constexpr const char* doc = "One ALIAS step, in place.";
  // The first two are empty in the forms that do not keep them; the last has one tensor for all parameters.
  using States = Types<List<"signs">, List<"prev_grads">, List<"scalars">>;
  using Arguments =
      Types<Argument<"memory_efficient", Flag>,                 // or the base form
            Argument<"gap", Choice<"descent", "lower_bound">>,  // what d comes from
            Argument<"lower_bound", Finite>,                    // of the loss
            Argument<"max_step", NotNegative>,                  // gamma is at most this
            Argument<"warmup_steps", Integer<0>>,               // gamma is lr in these
            Argument<"update_every", Integer<1>>,               // steps from one look at eta and d to the next
            // What eta comes from in the memory-efficient forms.
            Argument<"smoothness", Choice<"extrema", "sum">, Text("extrema")>,
            // Of the first step, for the lower bound: without it the step is refused, on a GPU NaN.
            Argument<"loss", OptionalNumber, none>, Argument<"phase", Choice<"step", "move", "refresh">, Text("step")>>;
  static PlanPtr plan(Call<Alias>&& call);
};

struct AliasAdam {
  static constexpr const char* name = "alias_adam";
  static constexpr const char* doc = "One ALIAS-Adam step, in place.";
  using States = Types<List<"exp_avgs">, List<"exp_avg_sqs">, List<"signs">, List<"scalars">>;
  using Arguments = Types<Argument<"beta1", Beta>, Argument<"beta2", Beta>, Argument<"eps", NotNegative>>;
  static PlanPtr plan(Call<AliasAdam>&& call);
};

using Rules = Types<Sage, SinkGD, Lion, SignSGD, Scale, AdamW, Alias, AliasAdam>;

}  // namespace sage_ext::ops
