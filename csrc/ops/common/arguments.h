#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

// What the signatures in ops/rules.h are written in: arguments with a name, a kind and perhaps a default. A name is
// part of a type, so that from one line come the member that holds the value, the schema, the Python function and
// its stub.
namespace sage_ext::ops {

using TensorList = std::vector<at::Tensor>;
// A number that a scheduler or a captured graph may keep in a tensor of one element.
using Number = std::variant<double, at::Tensor>;
// Names a parameter by its index in the list, for messages only; may be empty.
using Describe = std::function<std::string(int64_t)>;

// A string as a template argument.
template <size_t N>
struct Text {
  char chars[N];
  consteval Text(const char (&literal)[N]) { std::copy_n(literal, N, chars); }  // NOLINT: from a literal, unasked
  constexpr const char* c_str() const { return chars; }
};

// A list of types, which nothing is made of.
template <typename...>
struct Types {};

// Kinds of values. Hyperparameters: check() throws std::invalid_argument with the name and what the value may be.
// NaN is in no range.

struct NotNegative {  // and finite
  using Type = double;
  static void check(const char* name, double value);
};

struct Finite {
  using Type = double;
  static void check(const char* name, double value);
};

// In [0, 1).
struct Beta {
  using Type = double;
  static void check(const char* name, double value);
};

void check_integer(const char* name, int64_t value, int64_t min, int64_t max);

// In [Min, Max].
template <int64_t Min, int64_t Max = std::numeric_limits<int64_t>::max()>
struct Integer {
  using Type = int64_t;
  static void check(const char* name, int64_t value) { check_integer(name, value, Min, Max); }
};

void check_choice(const char* name, const std::string& value, const std::vector<const char*>& choices);

template <Text... Choices>
struct Choice {
  using Type = std::string;
  static void check(const char* name, const std::string& value) { check_choice(name, value, {Choices.c_str()...}); }
};

struct Flag {
  using Type = bool;
  static void check(const char*, bool) {}
};

// The next ones hold tensors: what those may be depends on the parameters' device, so the plan checks them.

struct Rate {
  using Type = Number;
  static void check(const char*, const Type&) {}
};

struct OptionalNumber {
  using Type = std::optional<Number>;
  static void check(const char*, const Type&) {}
};

struct OptionalScalar {  // a tensor of one element
  using Type = std::optional<at::Tensor>;
  static void check(const char*, const Type&) {}
};

// The default of what is optional.
struct None {};
inline constexpr None none;

// A list of tensors, one for each parameter unless the rule says otherwise.
enum class Access { written, read };

template <Text Name, Access How = Access::written>
struct List {
  using Type = TensorList;
  static constexpr auto text = Name;
  static constexpr const char* name() { return text.c_str(); }
  static constexpr bool is_written = How == Access::written;
};

// A keyword argument; `Default` is one value, or nothing where the caller must give one.
template <Text Name, typename Kind, auto... Default>
struct Argument {
  static_assert(sizeof...(Default) <= 1);
  using Type = typename Kind::Type;
  static constexpr auto text = Name;
  static constexpr const char* name() { return text.c_str(); }
  static constexpr bool has_default = sizeof...(Default) == 1;
  static Type default_value() { return (convert(Default), ...); }
  static void check(const Type& value) { Kind::check(name(), value); }

 private:
  static Type convert(None) { return {}; }
  template <size_t N>
  static Type convert(const Text<N>& value) {
    return value.c_str();
  }
  template <typename T>
    requires std::is_arithmetic_v<T>
  static Type convert(T value) {
    return value;
  }
};

// Where a value is kept, and how it is found again by its name: value_of<"lr">(values).
template <Text Name, typename T>
struct Slot {
  T value{};
};

template <Text Name, typename T>
T& value_of(Slot<Name, T>& slot) {
  return slot.value;
}
template <Text Name, typename T>
const T& value_of(const Slot<Name, T>& slot) {
  return slot.value;
}

// The values of some lists and arguments.
template <typename Declared>
struct Values;
template <typename... Declared>
struct Values<Types<Declared...>> : Slot<Declared::text, typename Declared::Type>... {};

template <typename V, Text Name>
inline constexpr bool has_value = requires(V& values) { value_of<Name>(values); };

template <typename Declared, typename... Arguments>
void check_arguments(const Values<Declared>& values, Types<Arguments...>) {
  (Arguments::check(value_of<Arguments::text>(values)), ...);
}

// Types<A...>, Types<B...>, ... -> Types<A..., B..., ...>
template <typename... Lists>
struct JoinedTypes;
template <typename... A>
struct JoinedTypes<Types<A...>> {
  using Result = Types<A...>;
};
template <typename... A, typename... B, typename... Rest>
struct JoinedTypes<Types<A...>, Types<B...>, Rest...> : JoinedTypes<Types<A..., B...>, Rest...> {};
template <typename... Lists>
using Joined = typename JoinedTypes<Types<>, Lists...>::Result;

}  // namespace sage_ext::ops
