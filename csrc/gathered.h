#pragma once

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ops/common/checks.h"

// What a step has gathered from Python's objects and checked, for the next one. To look whether all of it is still in
// its place is far cheaper than to gather and to check it again.
namespace sage_ext {

namespace py = pybind11;

// The items of optimizer.state in their order. To look one up by its key takes a call of Tensor.__hash__.
class StateItems {
 public:
  explicit StateItems(const py::dict& state) {
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    Py_ssize_t place = 0;
    items_.reserve(static_cast<size_t>(PyDict_GET_SIZE(state.ptr())));
    while (PyDict_Next(state.ptr(), &place, &key, &value) != 0) items_.push_back({key, value});
  }

  struct Item {
    PyObject* param;
    PyObject* state;
  };
  // Borrowed: valid as long as the dict is left alone.
  const std::vector<Item>& items() const { return items_; }

 private:
  std::vector<Item> items_;
};

// The tensors of one step of a group, in the lists of its rule's signature.
class GroupTensors {
 public:
  // The list at a place: the parameters, the gradients, each state.
  ops::TensorList take(size_t place) { return std::exchange(lists_.at(place), {}); }
  size_t count() const { return lists_.size(); }

 private:
  friend class Gathered;
  std::vector<ops::TensorList> lists_;
};

// One parameter group. It keeps no tensor alive.
class Gathered {
 public:
  // Of a step that has just been taken: the group's parameters; the optimizer's state; `keys`, a rule's names in the
  // states, of which those that are `kept` are there; and `shared`, what the group's parameters share.
  Gathered(const py::list& params, const StateItems& state, const std::vector<std::string>& keys,
           const std::vector<bool>& kept, const py::list& shared)
      : kept_(kept) {
    for (const std::string& key : keys) keys_.append(py::str(key));
    std::unordered_map<PyObject*, size_t> places;
    for (size_t i = 0; i < state.items().size(); ++i) places.emplace(state.items()[i].param, i);
    for (const py::handle& param : params) {
      if (!THPVariable_Check(param.ptr())) return;
      const auto place = places.find(param.ptr());
      params_.push_back({Py_TYPE(param.ptr()), place == places.end() ? kNowhere : place->second,
                         THPVariable_Unpack(param.ptr()).unsafeGetTensorImpl()->grad().defined()});
      if (params_.back().has_grad) ++num_grads_;
    }
    GroupTensors found;
    if (!find(params, state, shared, found)) return;
    known_.emplace(without_grads(found), found.lists_[1]);
    if (!known_->is_valid()) known_.reset();
  }

  bool is_valid() const { return known_.has_value(); }
  bool has_grads() const { return num_grads_ > 0; }

  // The tensors for a step, if all of them are in their places and as they were.
  std::unique_ptr<GroupTensors> look(const py::list& params, const StateItems& state, const py::list& shared) const {
    auto found = std::make_unique<GroupTensors>();
    if (!is_valid() || !find(params, state, shared, *found)) return nullptr;
    // The gradients may be others.
    const ops::TensorList grads = std::exchange(found->lists_[1], {});
    if (!known_->are(found->lists_) || !known_->accept(found->lists_[0], grads)) return nullptr;
    found->lists_[1] = grads;
    return found;
  }

 private:
  static constexpr size_t kNowhere = static_cast<size_t>(-1);

  struct Param {
    PyTypeObject* type;  // whose `grad` is torch's own
    size_t place;        // in optimizer.state
    bool has_grad;
  };

  static std::vector<ops::TensorList> without_grads(const GroupTensors& tensors) {
    std::vector<ops::TensorList> lists = tensors.lists_;
    lists[1].clear();
    return lists;
  }

  // Fills the lists from where everything was.
  bool find(const py::list& params, const StateItems& state, const py::list& shared, GroupTensors& found) const {
    const size_t states = kept_.size();
    std::vector<ops::TensorList>& lists = found.lists_;
    lists.resize(2 + states + shared.size());
    if (static_cast<size_t>(PyList_GET_SIZE(params.ptr())) != params_.size()) return false;
    lists[0].reserve(num_grads_);
    lists[1].reserve(num_grads_);
    for (size_t key = 0; key < states; ++key) lists[2 + key].reserve(kept_[key] ? num_grads_ : 0);
    for (size_t i = 0; i < params_.size(); ++i) {
      PyObject* const item = PyList_GET_ITEM(params.ptr(), static_cast<Py_ssize_t>(i));
      if (Py_TYPE(item) != params_[i].type) return false;
      const at::Tensor& param = THPVariable_Unpack(item);
      const at::Tensor& grad = param.unsafeGetTensorImpl()->grad();
      if (grad.defined() != params_[i].has_grad) return false;
      if (!grad.defined()) continue;
      lists[0].push_back(param);
      lists[1].push_back(grad);
      PyObject* held = nullptr;
      for (size_t key = 0; key < states; ++key) {
        if (!kept_[key]) continue;
        if (held == nullptr && (held = state_of(item, params_[i].place, state)) == nullptr) return false;
        // Borrowed, or null without an error: the key is a str.
        PyObject* const value = PyDict_GetItem(held, PyList_GET_ITEM(keys_.ptr(), static_cast<Py_ssize_t>(key)));
        if (value == nullptr || !THPVariable_Check(value)) return false;
        lists[2 + key].push_back(THPVariable_Unpack(value));
      }
    }
    for (size_t i = 0; i < shared.size(); ++i) {
      PyObject* const item = PyList_GET_ITEM(shared.ptr(), static_cast<Py_ssize_t>(i));
      if (!THPVariable_Check(item)) return false;
      lists[2 + states + i].push_back(THPVariable_Unpack(item));
    }
    return true;
  }

  static PyObject* state_of(PyObject* param, size_t place, const StateItems& state) {
    if (place >= state.items().size() || state.items()[place].param != param) return nullptr;
    PyObject* const held = state.items()[place].state;
    return PyDict_Check(held) ? held : nullptr;
  }

  std::vector<bool> kept_;
  py::list keys_;
  std::vector<Param> params_;
  size_t num_grads_ = 0;
  std::optional<ops::KnownTensors> known_;
};

}  // namespace sage_ext
