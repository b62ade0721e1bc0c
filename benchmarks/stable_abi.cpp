// What a step costs through libtorch's stable ABI, beside the kernels. stable_abi.py compiles this twice: for
// at::Tensor, and with STABLE for torch::stable::Tensor (torch 2.14). Everything but the face of the tensor is the
// same, and each tensor is asked for each fact once.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <valgrind/callgrind.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/lion.h"
#include "cpu/sinkgd.h"

#ifdef STABLE
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/pyobject.h>
#include <torch/csrc/stable/tensor.h>
#else
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#endif

namespace py = pybind11;
using namespace sage_ext;

namespace {

// What the checks look at.
struct Facts {
  char* data;
  int64_t numel, dim, storage;
  const int64_t* sizes;
  const int64_t* strides;
  int32_t dtype, device_type, device_index, layout;
};

#ifdef STABLE

using Tensor = torch::stable::Tensor;

Tensor tensor_of(PyObject* object) { return torch::stable::tensor_from_pyobject(object); }

Facts facts_of(const Tensor& tensor) {
  const AtenTensorHandle handle = tensor.get();
  Facts facts;
  void* data = nullptr;
  int64_t* sizes = nullptr;
  int64_t* strides = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &data));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(handle, &facts.numel));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &facts.dim));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(handle, &facts.storage));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &facts.dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle, &facts.device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(handle, &facts.device_index));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(handle, &facts.layout));
  facts.data = static_cast<char*>(data);
  facts.sizes = sizes;
  facts.strides = strides;
  return facts;
}

// There is no Tensor::grad().
bool take_grad(PyObject* param, const Tensor&, std::vector<Tensor>& grads) {
  static PyObject* const name = PyUnicode_InternFromString("grad");
  PyObject* const grad = PyObject_GetAttr(param, name);
  if (grad == nullptr) throw py::error_already_set();
  const bool is_there = grad != Py_None;
  if (is_there) grads.push_back(tensor_of(grad));
  Py_DECREF(grad);
  return is_there;
}

// Nor a version to bump.
void bump_versions(const std::vector<Tensor>&) {}

int32_t float32() {
  static const int32_t dtype = aoti_torch_dtype_float32();
  return dtype;
}

int num_threads() {
  uint32_t threads = 1;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
  return static_cast<int>(threads);
}

#else

using Tensor = at::Tensor;

Tensor tensor_of(PyObject* object) {
  if (!THPVariable_Check(object)) throw std::invalid_argument("not a tensor");
  return THPVariable_Unpack(object);
}

Facts facts_of(const Tensor& tensor) {
  const at::Device device = tensor.device();
  return {static_cast<char*>(const_cast<void*>(tensor.const_data_ptr())),
          tensor.numel(),
          tensor.dim(),
          static_cast<int64_t>(tensor.storage().nbytes()),
          tensor.sizes().data(),
          tensor.strides().data(),
          static_cast<int32_t>(tensor.scalar_type()),
          static_cast<int32_t>(device.type()),
          device.index(),
          static_cast<int32_t>(tensor.layout())};
}

bool take_grad(PyObject*, const Tensor& param, std::vector<Tensor>& grads) {
  const at::Tensor& grad = param.unsafeGetTensorImpl()->grad();
  if (grad.defined()) grads.push_back(grad);
  return grad.defined();
}

void bump_versions(const std::vector<Tensor>& tensors) {
  for (const Tensor& tensor : tensors) {
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
}

int32_t float32() { return static_cast<int32_t>(at::kFloat); }
int num_threads() { return at::get_num_threads(); }

#endif

using Tensors = std::vector<Tensor>;

std::vector<Facts> facts_of(const Tensors& tensors) {
  std::vector<Facts> result;
  result.reserve(tensors.size());
  for (const Tensor& tensor : tensors) result.push_back(facts_of(tensor));
  return result;
}

Tensors tensors_of(const py::list& list) {
  Tensors result;
  result.reserve(list.size());
  for (const py::handle& item : list) result.push_back(tensor_of(item.ptr()));
  return result;
}

bool same_layout(const Facts& a, const Facts& b) {
  return a.dim == b.dim && std::equal(a.sizes, a.sizes + a.dim, b.sizes) &&
         std::equal(a.strides, a.strides + a.dim, b.strides);
}

bool same_kind(const Facts& a, const Facts& b) {
  return a.dtype == b.dtype && a.device_type == b.device_type && a.device_index == b.device_index &&
         a.layout == b.layout && same_layout(a, b);
}

void check_alike(const std::vector<Facts>& list, const std::vector<Facts>& params) {
  if (list.size() != params.size()) throw std::invalid_argument("lengths");
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].dtype != float32() || !same_kind(list[i], params[i])) throw std::invalid_argument("kind");
  }
}

struct Range {
  const char* begin;
  const char* end;
};

std::vector<Range> ranges_of(std::initializer_list<const std::vector<Facts>*> lists) {
  std::vector<Range> ranges;
  for (const std::vector<Facts>* list : lists) {
    for (const Facts& facts : *list) {
      if (facts.numel > 0 && facts.storage == 0) throw std::invalid_argument("freed");
      ranges.push_back({facts.data, facts.data + facts.numel * 4});
    }
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  return ranges;
}

void check_apart(std::initializer_list<const std::vector<Facts>*> lists) {
  const std::vector<Range> ranges = ranges_of(lists);
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i - 1].end > ranges[i].begin) throw std::invalid_argument("overlap");
  }
}

void lion_kernels(const std::vector<Facts>& params, const std::vector<Facts>& grads, const std::vector<Facts>& exp_avgs,
                  double lr) {
  std::vector<cpu::LionTensor> tensors;
  tensors.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    tensors.push_back({params[i].data, grads[i].data, exp_avgs[i].data, params[i].numel, DType::float32, DType::float32,
                       DType::float32});
  }
  cpu::lion_step(tensors, {lr, 0.9, 0.99, 0.0, 1.0}, num_threads());
}

void sinkgd_kernels(const std::vector<Facts>& params, const std::vector<Facts>& grads, double lr) {
  std::vector<cpu::SinkGDMatrix> matrices;
  matrices.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    matrices.push_back(
        {params[i].data, grads[i].data, params[i].sizes[0], params[i].sizes[1], DType::float32, DType::float32});
  }
  cpu::SinkGDStep(std::move(matrices), {lr, 1.0, 1e-8, 0.0, 5, false, 1.0}).run(num_threads());
}

// A call with lists, as `_C.lion_` and `_C.sinkgd_` are.
void lion(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs, double lr) {
  const std::vector<Facts> p = facts_of(params), g = facts_of(grads), m = facts_of(exp_avgs);
  check_alike(p, p);
  check_alike(g, p);
  check_alike(m, p);
  check_apart({&p, &g, &m});
  lion_kernels(p, g, m, lr);
  bump_versions(params);
  bump_versions(exp_avgs);
}

void sinkgd(const Tensors& params, const Tensors& grads, double lr) {
  const std::vector<Facts> p = facts_of(params), g = facts_of(grads);
  check_alike(p, p);
  check_alike(g, p);
  check_apart({&p, &g});
  sinkgd_kernels(p, g, lr);
  bump_versions(params);
}

// A step like the last one, as `_C.Gathered` takes it: the tensors are where they were, only gradients may be others.
class Kept {
 public:
  Kept(const py::list& params, const py::list& states) {
    Tensors grads, exp_avgs;
    const Tensors tensors = find(params, states, grads, exp_avgs);
    params_ = facts_of(tensors);
    exp_avgs_ = facts_of(exp_avgs);
    written_ = ranges_of({&params_, &exp_avgs_});
    for (const std::vector<Facts>* list : {&params_, &exp_avgs_}) {
      for (const Facts& facts : *list) {
        dimensions_.insert(dimensions_.end(), facts.sizes, facts.sizes + facts.dim);
        dimensions_.insert(dimensions_.end(), facts.strides, facts.strides + facts.dim);
      }
    }
  }

  bool step(const py::list& params, const py::list& states, double lr) const {
    Tensors grads, exp_avgs;
    const Tensors tensors = find(params, states, grads, exp_avgs);
    const std::vector<Facts> p = facts_of(tensors), g = facts_of(grads), m = facts_of(exp_avgs);
    auto dimension = dimensions_.begin();
    if (!are(p, params_, dimension) || !are(m, exp_avgs_, dimension) || g.size() != p.size()) return false;
    for (size_t i = 0; i < g.size(); ++i) {
      if (!same_kind(g[i], p[i]) || g[i].storage == 0) return false;
      const auto after = std::upper_bound(written_.begin(), written_.end(), g[i].data,
                                          [](const char* begin, const Range& range) { return begin < range.begin; });
      if (after != written_.end() && after->begin < g[i].data + 4 * g[i].numel) return false;
      if (after != written_.begin() && std::prev(after)->end > g[i].data) return false;
    }
    const py::gil_scoped_release release;
    if (states.empty()) {
      sinkgd_kernels(p, g, lr);
    } else {
      lion_kernels(p, g, m, lr);
    }
    bump_versions(tensors);
    bump_versions(exp_avgs);
    return true;
  }

 private:
  static Tensors find(const py::list& params, const py::list& states, Tensors& grads, Tensors& exp_avgs) {
    static PyObject* const key = PyUnicode_InternFromString("exp_avg");
    Tensors result;
    result.reserve(params.size());
    grads.reserve(params.size());
    exp_avgs.reserve(states.size());
    for (size_t i = 0; i < params.size(); ++i) {
      PyObject* const param = PyList_GET_ITEM(params.ptr(), static_cast<Py_ssize_t>(i));
      result.push_back(tensor_of(param));
      take_grad(param, result.back(), grads);
      if (states.empty()) continue;
      PyObject* const held = PyList_GET_ITEM(states.ptr(), static_cast<Py_ssize_t>(i));
      exp_avgs.push_back(tensor_of(PyDict_GetItem(held, key)));
    }
    return result;
  }

  static bool are(const std::vector<Facts>& found, const std::vector<Facts>& kept,
                  std::vector<int64_t>::const_iterator& dimension) {
    if (found.size() != kept.size()) return false;
    for (size_t i = 0; i < found.size(); ++i) {
      const Facts &a = found[i], &b = kept[i];
      if (a.data != b.data || a.dim != b.dim || a.storage != b.storage || a.dtype != b.dtype ||
          a.device_type != b.device_type || a.device_index != b.device_index || a.layout != b.layout ||
          !std::equal(a.sizes, a.sizes + a.dim, dimension) ||
          !std::equal(a.strides, a.strides + a.dim, dimension + a.dim)) {
        return false;
      }
      dimension += 2 * a.dim;
    }
    return true;
  }

  std::vector<Facts> params_, exp_avgs_;
  std::vector<int64_t> dimensions_;
  std::vector<Range> written_;
};

// The least that any step has to do with tensors from Python: where each gradient is now.
uintptr_t find_grads(const py::list& params, const Tensors& known) {
  Tensors grads;
  grads.reserve(known.size());
  uintptr_t sum = 0;
  for (size_t i = 0; i < known.size(); ++i) {
    take_grad(PyList_GET_ITEM(params.ptr(), static_cast<Py_ssize_t>(i)), known[i], grads);
    sum += reinterpret_cast<uintptr_t>(grads.back().mutable_data_ptr());
  }
  return sum;
}

class Known {
 public:
  explicit Known(const py::list& params) : params_(tensors_of(params)) {}
  uintptr_t find_grads(const py::list& params) const { return ::find_grads(params, params_); }

 private:
  Tensors params_;
};

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("start_counting", [] {
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
  });
  m.def("stop_counting", [](const std::string& what) {
    CALLGRIND_DUMP_STATS_AT(what.c_str());
    CALLGRIND_STOP_INSTRUMENTATION;
  });
  m.def("lion", [](const py::list& params, const py::list& grads, const py::list& exp_avgs, double lr) {
    lion(tensors_of(params), tensors_of(grads), tensors_of(exp_avgs), lr);
  });
  m.def("sinkgd", [](const py::list& params, const py::list& grads, double lr) {
    sinkgd(tensors_of(params), tensors_of(grads), lr);
  });
  py::class_<Kept>(m, "Kept").def(py::init<const py::list&, const py::list&>()).def("step", &Kept::step);
  py::class_<Known>(m, "Known").def(py::init<const py::list&>()).def("find_grads", &Known::find_grads);
}

#ifdef STABLE
STABLE_TORCH_LIBRARY(spike_stable, m) {
  m.def("lion_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, float lr) -> ()");
  m.def("sinkgd_(Tensor(a!)[] params, Tensor[] grads, float lr) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(spike_stable, CPU, m) {
  m.impl("lion_", TORCH_BOX(&lion));
  m.impl("sinkgd_", TORCH_BOX(&sinkgd));
}
#else
TORCH_LIBRARY(spike_pinned, m) {
  m.def("lion_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, float lr) -> ()");
  m.def("sinkgd_(Tensor(a!)[] params, Tensor[] grads, float lr) -> ()");
}
TORCH_LIBRARY_IMPL(spike_pinned, CPU, m) {
  m.impl("lion_", [](at::TensorList params, at::TensorList grads, at::TensorList exp_avgs, double lr) {
    lion(params.vec(), grads.vec(), exp_avgs.vec(), lr);
  });
  m.impl("sinkgd_",
         [](at::TensorList params, at::TensorList grads, double lr) { sinkgd(params.vec(), grads.vec(), lr); });
}
#endif
