// The Python module sage_ext._C, and the same functions as torch.ops.sage_ext.*, made from the rules' declarations.
// torch/extension.h has all of torch in it, and takes longer to compile than everything in here.
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include <utility>

#include "cpu/common/isa.h"
#include "gathered.h"
#include "ops/common/signature.h"
#include "ops/functions.h"

namespace py = pybind11;

namespace sage_ext {
namespace {

using namespace ops;  // NOLINT: every name in here is of the rules

// A tensor stays one: a scheduler or a captured graph may write it, and to read it may mean to wait for a GPU.
Number number_or_tensor(const py::object& value) {
  if (THPVariable_Check(value.ptr())) return py::cast<at::Tensor>(value);
  return py::cast<double>(value);
}

// How a value of type T comes from Python: as what, and how it is made of that.
template <typename T>
struct FromPython {
  using Type = T;
  static T&& convert(T&& value) { return std::move(value); }
};
template <>
struct FromPython<Number> {
  using Type = py::object;
  static Number convert(const py::object& value) { return number_or_tensor(value); }
};
template <>
struct FromPython<std::optional<Number>> {
  using Type = py::object;
  static std::optional<Number> convert(const py::object& value) {
    if (value.is_none()) return std::nullopt;
    return number_or_tensor(value);
  }
};

// And from the dispatcher.
template <typename T>
struct FromDispatcher {
  using Type = T;
  static T convert(T value) { return value; }
};
template <>
struct FromDispatcher<TensorList> {
  using Type = at::TensorList;
  static TensorList convert(at::TensorList value) { return value.vec(); }
};
template <>
struct FromDispatcher<std::string> {
  using Type = std::string_view;
  static std::string convert(std::string_view value) { return std::string(value); }
};
template <>
struct FromDispatcher<std::optional<at::Tensor>> {
  using Type = const std::optional<at::Tensor>&;
  static std::optional<at::Tensor> convert(const std::optional<at::Tensor>& value) { return value; }
};
template <>
struct FromDispatcher<std::optional<Number>> {
  using Type = const std::optional<at::Tensor>&;
  static std::optional<Number> convert(const std::optional<at::Tensor>& value) {
    if (!value.has_value()) return std::nullopt;
    return *value;
  }
};

// A Number, of which an operator has an overload for either kind.
template <typename As>
struct NumberFromDispatcher {
  using Type = const As&;
  static Number convert(const at::Tensor& value) { return value; }
  static Number convert(const at::Scalar& value) { return value.toDouble(); }
};

// The step of a plan whose tensors are pieces, up to one exchange after the other.
class Stages {
 public:
  explicit Stages(PlanPtr plan) : plan_(std::move(plan)) {}

  std::optional<std::pair<std::string, TensorList>> proceed() {
    const py::gil_scoped_release release;
    std::optional<Exchange> exchange = plan_->proceed();
    if (!exchange) return {};
    return std::pair(std::string(exchange->over), std::move(exchange->buffers));
  }

 private:
  PlanPtr plan_;
};

// Plans of several groups: every one is checked as it is added, and nothing changes before run().
class Step {
 public:
  void add(PlanPtr plan) { plans_.push_back(std::move(plan)); }

  Stages stages(std::vector<std::vector<int64_t>> shapes, bool rows, bool columns) {
    if (plans_.size() != 1) {
      throw std::invalid_argument("stages: a step of " + std::to_string(plans_.size()) + " plans, expected one");
    }
    plans_[0]->begin({std::move(shapes), rows, columns});
    PlanPtr plan = std::move(plans_[0]);
    plans_.clear();
    return Stages(std::move(plan));
  }

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

// A rule as a function, with its lists and arguments in the order of its signature.
template <typename Rule, typename Lists = ListsOf<Rule>, typename Arguments = ArgumentsOf<Rule>>
struct Function;

template <typename Rule, typename... L, typename... A>
struct Function<Rule, Types<L...>, Types<A...>> {
  template <typename Declared>
  using Python = FromPython<typename Declared::Type>;
  template <typename Declared, typename Rate>
  using Dispatcher = std::conditional_t<std::is_same_v<typename Declared::Type, Number>, NumberFromDispatcher<Rate>,
                                        FromDispatcher<typename Declared::Type>>;

  static PlanPtr plan(typename Python<L>::Type... lists, typename Python<A>::Type... arguments,
                      const py::object& describe) {
    Call<Rule> call;
    ((value_of<L::text>(call) = Python<L>::convert(std::move(lists))), ...);
    ((value_of<A::text>(call) = Python<A>::convert(std::move(arguments))), ...);
    if (!describe.is_none()) {
      call.common.describe = [describe](int64_t index) { return py::cast<std::string>(describe(index)); };
    }
    return Rule::plan(std::move(call));
  }

  template <typename Argument>
  static auto keyword() {
    if constexpr (Argument::has_default) {
      return py::arg(Argument::name()) = Argument::default_value();
    } else {
      return py::arg(Argument::name());
    }
  }

  // Step.<name>(..., describe=None), and the function <name>_(...), which is one such step on its own.
  static void define(py::module_& module, py::class_<Step>& step_class) {
    step_class.def(
        Rule::name,
        [](Step& step, typename Python<L>::Type... lists, typename Python<A>::Type... arguments,
           const py::object& describe) { step.add(plan(std::move(lists)..., std::move(arguments)..., describe)); },
        Rule::doc, py::arg(L::name())..., py::kw_only(), keyword<A>()..., py::arg("describe") = py::none());
    module.def(
        (std::string(Rule::name) + "_").c_str(),
        [](typename Python<L>::Type... lists, typename Python<A>::Type... arguments, const py::object& describe) {
          const PlanPtr made = plan(std::move(lists)..., std::move(arguments)..., describe);
          const py::gil_scoped_release release;
          made->run();
        },
        Rule::doc, py::arg(L::name())..., py::kw_only(), keyword<A>()..., py::arg("describe") = py::none());
  }

  // Step.again_<name>(tensors, ...): with lists that have been checked.
  static void define_again(py::class_<Step>& step_class) {
    step_class.def((std::string("again_") + Rule::name).c_str(),
                   [](Step& step, GroupTensors& tensors, typename Python<A>::Type... arguments) {
                     if (tensors.count() != sizeof...(L)) throw std::invalid_argument("tensors: of another rule");
                     Call<Rule> call;
                     size_t place = 0;
                     ((value_of<L::text>(call) = tensors.take(place++)), ...);
                     ((value_of<A::text>(call) = Python<A>::convert(std::move(arguments))), ...);
                     call.common.are_known = true;
                     step.add(Rule::plan(std::move(call)));
                   },
                   Rule::doc, py::arg("tensors"), py::kw_only(), keyword<A>()...);
  }

  // torch.ops.sage_ext.<name>_: the same plan, with a learning rate of type `Rate`.
  template <typename Rate>
  static void dispatched(typename Dispatcher<L, Rate>::Type... lists, typename Dispatcher<A, Rate>::Type... arguments) {
    Call<Rule> call;
    ((value_of<L::text>(call) = Dispatcher<L, Rate>::convert(lists)), ...);
    ((value_of<A::text>(call) = Dispatcher<A, Rate>::convert(arguments)), ...);
    Rule::plan(std::move(call))->run();
  }

  // For tools/stub.py: the doc string, and (name, type, default) of every parameter, with None where it has none.
  static py::tuple description() {
    py::list lists, keywords;
    (lists.append(py::make_tuple(L::name(), type_name<typename L::Type>.python, py::none())), ...);
    const auto add = [&]<typename Argument>(Types<Argument>) {
      py::object value = py::none();
      if constexpr (Argument::has_default) value = py::str(literal(Argument::default_value()));
      keywords.append(py::make_tuple(Argument::name(), type_name<typename Argument::Type>.python, value));
    };
    (add(Types<A>()), ...);
    keywords.append(py::make_tuple("describe", "Callable[[int], str] | None", "None"));
    return py::make_tuple(Rule::doc, lists, keywords);
  }
};

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

py::dict signatures() {
  py::dict result;
  for_each_rule([&]<typename Rule>(Types<Rule>) { result[Rule::name] = Function<Rule>::description(); });
  return result;
}

// A function that is no rule.
template <typename F, typename Arguments = typename F::Arguments>
struct PlainFunction;

template <typename F, typename... A>
struct PlainFunction<F, Types<A...>> {
  static void define(py::module_& module) {
    module.def(F::name, &F::run, F::doc, py::arg(A::name())..., py::call_guard<py::gil_scoped_release>());
  }

  static py::tuple description() {
    py::list arguments;
    (arguments.append(py::make_tuple(A::name(), type_name<typename A::Type>.python, py::none())), ...);
    return py::make_tuple(F::doc, arguments);
  }
};

py::dict functions() {
  py::dict result;
  for_each_rule([&]<typename F>(Types<F>) { result[F::name] = PlainFunction<F>::description(); }, Functions());
  return result;
}

// The same functions for every device: a plan looks at its tensors.
void implement(torch::Library& library) {
  for_each_rule([&]<typename Rule>(Types<Rule>) {
    const std::string name = std::string(Rule::name) + "_";
    library.impl(name.c_str(), &Function<Rule>::template dispatched<at::Scalar>);
    library.impl((name + ".tensor_lr").c_str(), &Function<Rule>::template dispatched<at::Tensor>);
  });
}

}  // namespace
}  // namespace sage_ext

TORCH_LIBRARY(sage_ext, m) {
  using namespace sage_ext::ops;  // NOLINT
  // Overloads are tried in this order, and a tensor would pass for a number. A Scalar may be symbolic while a compiler
  // traces the call; of a float it would have to know the value.
  for_each_rule([&]<typename Rule>(Types<Rule>) {
    m.def(schema<Rule>("tensor_lr", "Tensor").c_str());
    m.def(schema<Rule>("", "Scalar").c_str());
  });
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
  m.def("signatures", &signatures, "What every rule takes, as its declaration says it; the stub is made from this.");

  m.def("functions", &functions, "The same of the functions that are no rules.");

  py::class_<Step> step(m, "Step", "Plans of several groups of tensors: all are checked before one runs.");
  step.def(py::init<>()).def("run", &Step::run, "Runs every plan in the order of adding, then forgets them.");
  py::class_<Stages> stages(m, "Stages", "A step on pieces of tensors, which other processes have the rest of.");
  stages.def(
      "proceed", &Stages::proceed,
      "Goes on to the next exchange: what was summed over, 'rows' or 'columns', and a buffer for each parameter, "
      "which has to hold the sum over all pieces by the next call. None when the step is done.");
  step.def("stages", &Step::stages, py::kw_only(), py::arg("shapes"), py::arg("rows"), py::arg("columns"),
           "Takes the only plan to be carried out in stages; `shapes` are of the whole parameters, and `rows` and "
           "`columns` say what other processes have the rest of.");
  py::class_<StateItems>(m, "StateItems", "The items of optimizer.state, for Gathered; valid until that changes.")
      .def(py::init<const py::dict&>(), py::arg("state"));
  py::class_<GroupTensors>(m, "GroupTensors", "The tensors of one step of a parameter group.");
  py::class_<Gathered>(m, "Gathered", "Where the last step has found the tensors of a parameter group.")
      .def(py::init<const py::list&, const StateItems&, const std::vector<std::string>&, const std::vector<bool>&,
                    const py::list&>(),
           py::arg("params"), py::arg("state"), py::arg("keys"), py::arg("kept"), py::arg("shared"))
      .def_property_readonly("is_valid", &Gathered::is_valid, "Whether steps can begin with it.")
      .def_property_readonly("has_grads", &Gathered::has_grads, "Whether any parameter had a gradient.")
      .def("look", &Gathered::look, py::arg("params"), py::arg("state"), py::arg("shared"),
           "The tensors for a step, if all of them are in their places and as they were; else None.");
  for_each_rule([&]<typename Rule>(Types<Rule>) {
    Function<Rule>::define(m, step);
    Function<Rule>::define_again(step);
  });
  for_each_rule([&]<typename F>(Types<F>) { PlainFunction<F>::define(m); }, Functions());
}
