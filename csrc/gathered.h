#pragma once

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
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

// One parameter group. Nothing is kept alive between steps.
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
      const bool has_grad = THPVariable_Unpack(param.ptr()).unsafeGetTensorImpl()->grad().defined();
      has_grad_.push_back(has_grad);
      const auto place = places.find(param.ptr());
      places_.push_back(place == places.end() ? kNowhere : place->second);
    }
    is_valid_ = find(params, state, shared);
    if (is_valid_) {
      known_.emplace(lists_, grads_);
      is_valid_ = known_->is_valid();
    }
    release();
  }

  bool is_valid() const { return is_valid_; }
  bool has_grads() const { return std::find(has_grad_.begin(), has_grad_.end(), true) != has_grad_.end(); }

  // Whether all of it is in its place and as it was; then it holds the lists of a step.
  bool refresh(const py::list& params, const StateItems& state, const py::list& shared) {
    if (is_valid_ && find(params, state, shared) && known_->are(lists_) && known_->accept(lists_[0], grads_))
      return true;
    release();
    return false;
  }

  // The list at this place of a rule's signature: the parameters, the gradients, each state.
  ops::TensorList take(size_t place) {
    return place == 1 ? std::exchange(grads_, {}) : std::exchange(lists_[place == 0 ? 0 : place - 1], {});
  }
  size_t count() const { return lists_.size() + 1; }

 private:
  static constexpr size_t kNowhere = static_cast<size_t>(-1);

  void release() {
    lists_.clear();
    grads_.clear();
  }

  // Fills the lists from where everything was.
  bool find(const py::list& params, const StateItems& state, const py::list& shared) {
    release();
    const size_t states = kept_.size();
    lists_.resize(1 + states + shared.size());
    if (static_cast<size_t>(PyList_GET_SIZE(params.ptr())) != has_grad_.size()) return false;
    const auto count = static_cast<size_t>(std::count(has_grad_.begin(), has_grad_.end(), true));
    lists_[0].reserve(count);
    grads_.reserve(count);
    for (size_t key = 0; key < states; ++key) lists_[1 + key].reserve(kept_[key] ? count : 0);
    for (size_t i = 0; i < has_grad_.size(); ++i) {
      PyObject* const item = PyList_GET_ITEM(params.ptr(), static_cast<Py_ssize_t>(i));
      if (!THPVariable_Check(item)) return false;
      const at::Tensor& param = THPVariable_Unpack(item);
      const at::Tensor& grad = param.unsafeGetTensorImpl()->grad();
      if (grad.defined() != has_grad_[i]) return false;
      if (!grad.defined()) continue;
      lists_[0].push_back(param);
      grads_.push_back(grad);
      PyObject* held = nullptr;
      for (size_t key = 0; key < states; ++key) {
        if (!kept_[key]) continue;
        if (held == nullptr && (held = state_of(item, places_[i], state)) == nullptr) return false;
        // Borrowed, or null without an error: the key is a str.
        PyObject* const found = PyDict_GetItem(held, PyList_GET_ITEM(keys_.ptr(), static_cast<Py_ssize_t>(key)));
        if (found == nullptr || !THPVariable_Check(found)) return false;
        lists_[1 + key].push_back(THPVariable_Unpack(found));
      }
    }
    for (size_t i = 0; i < shared.size(); ++i) {
      PyObject* const item = PyList_GET_ITEM(shared.ptr(), static_cast<Py_ssize_t>(i));
      if (!THPVariable_Check(item)) return false;
      lists_[1 + states + i].push_back(THPVariable_Unpack(item));
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
  std::vector<bool> has_grad_;
  std::vector<size_t> places_;  // of the parameters in optimizer.state
  std::optional<ops::KnownTensors> known_;
  bool is_valid_ = false;
  std::vector<ops::TensorList> lists_;
  ops::TensorList grads_;
};

}  // namespace sage_ext
