// The Python module sage_ext._C, and the same functions as torch.ops.sage_ext.*.
// torch/extension.h has all of torch in it, and takes longer to compile than everything in here.
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include <utility>

#include "cpu/common/isa.h"
#include "ops/rules.h"

namespace py = pybind11;

namespace sage_ext {
namespace {

using ops::CommonArgs;
using ops::Describe;
using ops::PlanPtr;
using ops::TensorList;
using OptionalTensor = std::optional<at::Tensor>;

// A tensor stays one: a scheduler or a captured graph may write it, and to read it may mean to wait for a GPU.
std::variant<double, at::Tensor> number_or_tensor(const py::object& value) {
  if (THPVariable_Check(value.ptr())) return py::cast<at::Tensor>(value);
  return py::cast<double>(value);
}

CommonArgs common_args(const py::object& lr, double weight_decay, bool maximize, OptionalTensor grad_scale,
                       OptionalTensor found_inf, const py::object& describe) {
  CommonArgs args{number_or_tensor(lr), weight_decay, maximize, std::move(grad_scale), std::move(found_inf), {}};
  if (!describe.is_none()) {
    args.describe = [describe](int64_t index) { return py::cast<std::string>(describe(index)); };
  }
  return args;
}

// Plans of several groups: every one is checked as it is added, and nothing changes before run().
class Step {
 public:
  void add(PlanPtr plan) { plans_.push_back(std::move(plan)); }

  void run() {
    std::vector<PlanPtr> plans = std::exchange(plans_, {});
    {
      const py::gil_scoped_release release;
      for (const PlanPtr& plan : plans) plan->run();
    }
  }

 private:
  std::vector<PlanPtr> plans_;
};

// Defines Step.<name>(..., describe=None) and the function <name>_(...), which is one such step on its own. `make`
// turns the arguments into a plan; `arguments` are their py::arg's.
template <typename... Args, typename... Extra>
void define_rule(py::module_& module, py::class_<Step>& step_class, const char* name, PlanPtr (*make)(Args...),
                 const char* doc, const Extra&... arguments) {
  step_class.def(
      name, [make](Step& step, Args... args) { step.add(make(std::forward<Args>(args)...)); }, doc, arguments...,
      py::arg("describe") = py::none());
  module.def((std::string(name) + "_").c_str(),
             [make](Args... args) {
               const PlanPtr plan = make(std::forward<Args>(args)...);
               const py::gil_scoped_release release;
               plan->run();
             },
             doc, arguments..., py::arg("describe") = py::none());
}

PlanPtr make_sage(TensorList params, TensorList grads, TensorList exp_avgs, TensorList s_ranges, TensorList steps,
                  py::object lr, double beta1, double beta2, double eps, double weight_decay, bool momentum_first,
                  bool instant_damper, bool maximize, OptionalTensor grad_scale, OptionalTensor found_inf,
                  py::object describe) {
  return ops::plan_sage(std::move(params), std::move(grads), std::move(exp_avgs), std::move(s_ranges), std::move(steps),
                        {beta1, beta2, eps, momentum_first, instant_damper},
                        common_args(lr, weight_decay, maximize, std::move(grad_scale), std::move(found_inf), describe));
}

PlanPtr make_sinkgd(TensorList params, TensorList grads, py::object lr, int64_t iterations, double alpha, double eps,
                    double weight_decay, std::string normalization, bool maximize, OptionalTensor grad_scale,
                    OptionalTensor found_inf, py::object describe) {
  return ops::plan_sinkgd(
      std::move(params), std::move(grads), {iterations, alpha, eps, std::move(normalization)},
      common_args(lr, weight_decay, maximize, std::move(grad_scale), std::move(found_inf), describe));
}

PlanPtr make_lion(TensorList params, TensorList grads, TensorList exp_avgs, py::object lr, double beta1, double beta2,
                  double weight_decay, bool maximize, OptionalTensor grad_scale, OptionalTensor found_inf,
                  py::object describe) {
  return ops::plan_lion(std::move(params), std::move(grads), std::move(exp_avgs), {beta1, beta2},
                        common_args(lr, weight_decay, maximize, std::move(grad_scale), std::move(found_inf), describe));
}

PlanPtr make_sign_sgd(TensorList params, TensorList grads, TensorList exp_avgs, py::object lr, double momentum,
                      double weight_decay, bool maximize, OptionalTensor grad_scale, OptionalTensor found_inf,
                      py::object describe) {
  return ops::plan_sign_sgd(
      std::move(params), std::move(grads), std::move(exp_avgs), {momentum},
      common_args(lr, weight_decay, maximize, std::move(grad_scale), std::move(found_inf), describe));
}

PlanPtr make_scale(TensorList params, TensorList grads, TensorList exp_avgs, py::object lr, double momentum,
                   int64_t dim, double eps, double weight_decay, std::string normalization, bool maximize,
                   OptionalTensor grad_scale, OptionalTensor found_inf, py::object describe) {
  return ops::plan_scale(
      std::move(params), std::move(grads), std::move(exp_avgs), {momentum, dim, eps, std::move(normalization)},
      common_args(lr, weight_decay, maximize, std::move(grad_scale), std::move(found_inf), describe));
}

PlanPtr make_adamw(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs, TensorList steps,
                   py::object lr, double beta1, double beta2, double eps, double weight_decay, bool maximize,
                   OptionalTensor grad_scale, OptionalTensor found_inf, py::object describe) {
  return ops::plan_adamw(
      std::move(params), std::move(grads), std::move(exp_avgs), std::move(exp_avg_sqs), std::move(steps),
      {beta1, beta2, eps},
      common_args(lr, weight_decay, maximize, std::move(grad_scale), std::move(found_inf), describe));
}

PlanPtr make_alias(TensorList params, TensorList grads, TensorList signs, TensorList prev_grads, TensorList scalars,
                   py::object lr, bool memory_efficient, std::string gap, double lower_bound, double max_step,
                   int64_t warmup_steps, int64_t update_every, double weight_decay, py::object loss, std::string phase,
                   bool maximize, OptionalTensor grad_scale, OptionalTensor found_inf, py::object describe) {
  ops::AliasArgs args{memory_efficient, std::move(gap), lower_bound,  max_step,
                      warmup_steps,     update_every,   std::nullopt, std::move(phase)};
  if (!loss.is_none()) args.loss = number_or_tensor(loss);
  return ops::plan_alias(
      std::move(params), std::move(grads), std::move(signs), std::move(prev_grads), std::move(scalars), std::move(args),
      common_args(lr, weight_decay, maximize, std::move(grad_scale), std::move(found_inf), describe));
}

PlanPtr make_alias_adam(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                        TensorList signs, TensorList scalars, py::object lr, double beta1, double beta2, double eps,
                        double weight_decay, bool maximize, OptionalTensor grad_scale, OptionalTensor found_inf,
                        py::object describe) {
  return ops::plan_alias_adam(
      std::move(params), std::move(grads), std::move(exp_avgs), std::move(exp_avg_sqs), std::move(signs),
      std::move(scalars), {beta1, beta2, eps},
      common_args(lr, weight_decay, maximize, std::move(grad_scale), std::move(found_inf), describe));
}

py::dict build_info() {
  py::dict info;
  info["version"] = SAGE_EXT_VERSION;
  info["torch_version"] = TORCH_VERSION;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["cpu_capabilities"] = py::str(cpu::built_isas()).attr("split")();
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#ifdef SAGE_EXT_WITH_CUDA
  info["cuda"] = true;
  info["cuda_version"] = SAGE_EXT_CUDA_VERSION;
  info["cuda_arch_list"] = SAGE_EXT_CUDA_ARCH_LIST;
#else
  info["cuda"] = false;
  info["cuda_version"] = "";
  info["cuda_arch_list"] = "";
#endif
  return info;
}

// torch.ops.sage_ext.*: the same plans behind the dispatcher.
CommonArgs dispatcher_args(double lr, double weight_decay, bool maximize, const OptionalTensor& grad_scale,
                           const OptionalTensor& found_inf) {
  return {lr, weight_decay, maximize, grad_scale, found_inf, {}};
}

void sage_op(at::TensorList params, at::TensorList grads, at::TensorList exp_avgs, at::TensorList s_ranges,
             at::TensorList steps, double lr, double beta1, double beta2, double eps, double weight_decay,
             bool momentum_first, bool instant_damper, bool maximize, const OptionalTensor& grad_scale,
             const OptionalTensor& found_inf) {
  ops::plan_sage(params.vec(), grads.vec(), exp_avgs.vec(), s_ranges.vec(), steps.vec(),
                 {beta1, beta2, eps, momentum_first, instant_damper},
                 dispatcher_args(lr, weight_decay, maximize, grad_scale, found_inf))
      ->run();
}

void sinkgd_op(at::TensorList params, at::TensorList grads, double lr, int64_t iterations, double alpha, double eps,
               double weight_decay, std::string_view normalization, bool maximize, const OptionalTensor& grad_scale,
               const OptionalTensor& found_inf) {
  ops::plan_sinkgd(params.vec(), grads.vec(), {iterations, alpha, eps, std::string(normalization)},
                   dispatcher_args(lr, weight_decay, maximize, grad_scale, found_inf))
      ->run();
}

void lion_op(at::TensorList params, at::TensorList grads, at::TensorList exp_avgs, double lr, double beta1,
             double beta2, double weight_decay, bool maximize, const OptionalTensor& grad_scale,
             const OptionalTensor& found_inf) {
  ops::plan_lion(params.vec(), grads.vec(), exp_avgs.vec(), {beta1, beta2},
                 dispatcher_args(lr, weight_decay, maximize, grad_scale, found_inf))
      ->run();
}

void sign_sgd_op(at::TensorList params, at::TensorList grads, at::TensorList exp_avgs, double lr, double momentum,
                 double weight_decay, bool maximize, const OptionalTensor& grad_scale,
                 const OptionalTensor& found_inf) {
  ops::plan_sign_sgd(params.vec(), grads.vec(), exp_avgs.vec(), {momentum},
                     dispatcher_args(lr, weight_decay, maximize, grad_scale, found_inf))
      ->run();
}

void scale_op(at::TensorList params, at::TensorList grads, at::TensorList exp_avgs, double lr, double momentum,
              int64_t dim, double eps, double weight_decay, std::string_view normalization, bool maximize,
              const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
  ops::plan_scale(params.vec(), grads.vec(), exp_avgs.vec(), {momentum, dim, eps, std::string(normalization)},
                  dispatcher_args(lr, weight_decay, maximize, grad_scale, found_inf))
      ->run();
}

void adamw_op(at::TensorList params, at::TensorList grads, at::TensorList exp_avgs, at::TensorList exp_avg_sqs,
              at::TensorList steps, double lr, double beta1, double beta2, double eps, double weight_decay,
              bool maximize, const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
  ops::plan_adamw(params.vec(), grads.vec(), exp_avgs.vec(), exp_avg_sqs.vec(), steps.vec(), {beta1, beta2, eps},
                  dispatcher_args(lr, weight_decay, maximize, grad_scale, found_inf))
      ->run();
}

void alias_op(at::TensorList params, at::TensorList grads, at::TensorList signs, at::TensorList prev_grads,
              at::TensorList scalars, double lr, bool memory_efficient, std::string_view gap, double lower_bound,
              double max_step, int64_t warmup_steps, int64_t update_every, double weight_decay,
              const OptionalTensor& loss, std::string_view phase, bool maximize, const OptionalTensor& grad_scale,
              const OptionalTensor& found_inf) {
  ops::AliasArgs args{memory_efficient, std::string(gap), lower_bound,  max_step,
                      warmup_steps,     update_every,     std::nullopt, std::string(phase)};
  if (loss.has_value()) args.loss = *loss;
  ops::plan_alias(params.vec(), grads.vec(), signs.vec(), prev_grads.vec(), scalars.vec(), std::move(args),
                  dispatcher_args(lr, weight_decay, maximize, grad_scale, found_inf))
      ->run();
}

void alias_adam_op(at::TensorList params, at::TensorList grads, at::TensorList exp_avgs, at::TensorList exp_avg_sqs,
                   at::TensorList signs, at::TensorList scalars, double lr, double beta1, double beta2, double eps,
                   double weight_decay, bool maximize, const OptionalTensor& grad_scale,
                   const OptionalTensor& found_inf) {
  ops::plan_alias_adam(params.vec(), grads.vec(), exp_avgs.vec(), exp_avg_sqs.vec(), signs.vec(), scalars.vec(),
                       {beta1, beta2, eps}, dispatcher_args(lr, weight_decay, maximize, grad_scale, found_inf))
      ->run();
}

// The same functions for every device: a plan looks at its tensors.
void implement(torch::Library& library) {
  library.impl("sage_", &sage_op);
  library.impl("sinkgd_", &sinkgd_op);
  library.impl("lion_", &lion_op);
  library.impl("sign_sgd_", &sign_sgd_op);
  library.impl("scale_", &scale_op);
  library.impl("adamw_", &adamw_op);
  library.impl("alias_", &alias_op);
  library.impl("alias_adam_", &alias_adam_op);
}

}  // namespace
}  // namespace sage_ext

TORCH_LIBRARY(sage_ext, m) {
  m.def(
      "sage_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] s_ranges, "
      "Tensor(d!)[] steps, *, float lr, float beta1, float beta2, float eps, float weight_decay, "
      "bool momentum_first=False, bool instant_damper=True, bool maximize=False, Tensor? grad_scale=None, "
      "Tensor? found_inf=None) -> ()");
  m.def(
      "sinkgd_(Tensor(a!)[] params, Tensor[] grads, *, float lr, int iterations, float alpha, float eps, "
      "float weight_decay, str normalization=\"sqrt\", bool maximize=False, Tensor? grad_scale=None, "
      "Tensor? found_inf=None) -> ()");
  m.def(
      "lion_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, *, float lr, float beta1, float beta2, "
      "float weight_decay, bool maximize=False, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()");
  m.def(
      "sign_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, *, float lr, float momentum, "
      "float weight_decay, bool maximize=False, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()");
  m.def(
      "scale_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, *, float lr, float momentum, int dim, "
      "float eps, float weight_decay, str normalization=\"rms\", bool maximize=False, Tensor? grad_scale=None, "
      "Tensor? found_inf=None) -> ()");
  m.def(
      "adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] steps, *, float lr, float beta1, float beta2, float eps, float weight_decay, "
      "bool maximize=False, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()");
  m.def(
      "alias_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] signs, Tensor(c!)[] prev_grads, "
      "Tensor(d!)[] scalars, *, float lr, bool memory_efficient, str gap, float lower_bound, float max_step, "
      "int warmup_steps, int update_every, float weight_decay, Tensor? loss=None, str phase=\"step\", "
      "bool maximize=False, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()");
  m.def(
      "alias_adam_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] signs, Tensor(e!)[] scalars, *, float lr, float beta1, float beta2, float eps, "
      "float weight_decay, bool maximize=False, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()");
}

TORCH_LIBRARY_IMPL(sage_ext, CPU, m) { sage_ext::implement(m); }
#ifdef SAGE_EXT_WITH_CUDA
TORCH_LIBRARY_IMPL(sage_ext, CUDA, m) { sage_ext::implement(m); }
#endif

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace sage_ext;
  m.doc() = "Native kernels of sage_ext; sage_ext.reference has the same functions in plain PyTorch.";
  m.attr("__version__") = SAGE_EXT_VERSION;
  m.def("build_info", &build_info, "What this module was built with, as a dict.");
  m.def(
      "cpu_capability", [] { return cpu::isa_name(cpu::active_isa()); },
      "The instruction set of the CPU kernels: 'default', 'avx2' or 'avx512'.");

  py::class_<Step> step(m, "Step", "Plans of several groups of tensors: all are checked before one runs.");
  step.def(py::init<>()).def("run", &Step::run, "Runs every plan in the order of adding, then forgets them.");

  define_rule(m, step, "sage", &make_sage, "One SAGE step, in place.", py::arg("params"), py::arg("grads"),
              py::arg("exp_avgs"), py::arg("s_ranges"), py::arg("steps"), py::kw_only(), py::arg("lr"),
              py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"),
              py::arg("momentum_first") = false, py::arg("instant_damper") = true, py::arg("maximize") = false,
              py::arg("grad_scale") = py::none(), py::arg("found_inf") = py::none());
  define_rule(m, step, "sinkgd", &make_sinkgd, "One SinkGD step, in place.", py::arg("params"), py::arg("grads"),
              py::kw_only(), py::arg("lr"), py::arg("iterations"), py::arg("alpha"), py::arg("eps"),
              py::arg("weight_decay"), py::arg("normalization") = "sqrt", py::arg("maximize") = false,
              py::arg("grad_scale") = py::none(), py::arg("found_inf") = py::none());
  define_rule(m, step, "lion", &make_lion, "One Lion step, in place.", py::arg("params"), py::arg("grads"),
              py::arg("exp_avgs"), py::kw_only(), py::arg("lr"), py::arg("beta1"), py::arg("beta2"),
              py::arg("weight_decay"), py::arg("maximize") = false, py::arg("grad_scale") = py::none(),
              py::arg("found_inf") = py::none());
  define_rule(m, step, "sign_sgd", &make_sign_sgd, "One step of Sign-SGD or, with momentum, Signum, in place.",
              py::arg("params"), py::arg("grads"), py::arg("exp_avgs"), py::kw_only(), py::arg("lr"),
              py::arg("momentum"), py::arg("weight_decay"), py::arg("maximize") = false,
              py::arg("grad_scale") = py::none(), py::arg("found_inf") = py::none());
  define_rule(m, step, "scale", &make_scale, "One SCALE step, in place.", py::arg("params"), py::arg("grads"),
              py::arg("exp_avgs"), py::kw_only(), py::arg("lr"), py::arg("momentum"), py::arg("dim"), py::arg("eps"),
              py::arg("weight_decay"), py::arg("normalization") = "rms", py::arg("maximize") = false,
              py::arg("grad_scale") = py::none(), py::arg("found_inf") = py::none());
  define_rule(m, step, "adamw", &make_adamw, "One AdamW step, in place.", py::arg("params"), py::arg("grads"),
              py::arg("exp_avgs"), py::arg("exp_avg_sqs"), py::arg("steps"), py::kw_only(), py::arg("lr"),
              py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("maximize") = false,
              py::arg("grad_scale") = py::none(), py::arg("found_inf") = py::none());
  define_rule(m, step, "alias", &make_alias, "One ALIAS step, in place.", py::arg("params"), py::arg("grads"),
              py::arg("signs"), py::arg("prev_grads"), py::arg("scalars"), py::kw_only(), py::arg("lr"),
              py::arg("memory_efficient"), py::arg("gap"), py::arg("lower_bound"), py::arg("max_step"),
              py::arg("warmup_steps"), py::arg("update_every"), py::arg("weight_decay"), py::arg("loss") = py::none(),
              py::arg("phase") = "step", py::arg("maximize") = false, py::arg("grad_scale") = py::none(),
              py::arg("found_inf") = py::none());
  define_rule(m, step, "alias_adam", &make_alias_adam, "One ALIAS-Adam step, in place.", py::arg("params"),
              py::arg("grads"), py::arg("exp_avgs"), py::arg("exp_avg_sqs"), py::arg("signs"), py::arg("scalars"),
              py::kw_only(), py::arg("lr"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"),
              py::arg("maximize") = false, py::arg("grad_scale") = py::none(), py::arg("found_inf") = py::none());
}
