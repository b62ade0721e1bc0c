#pragma once

#include <string>

#include "ops/rules.h"

// A rule's signature as a whole, and in words.
namespace sage_ext::ops {

// The lists of tensors, which are positional, and the keyword arguments, in order.
template <typename Rule>
using ListsOf = Joined<Common::Lists, typename Rule::States>;

template <bool Default, typename Declared>
struct WithDefault;
template <bool Default, typename... Arguments>
struct WithDefault<Default, Types<Arguments...>> {
  using Result = Joined<std::conditional_t<Arguments::has_default == Default, Types<Arguments>, Types<>>...>;
};

template <typename Rule, typename Declared = Joined<Common::First, typename Rule::Arguments, Common::Last>>
using ArgumentsOf = Joined<typename WithDefault<false, Declared>::Result, typename WithDefault<true, Declared>::Result>;

// A list or an argument of a call.
template <Text Name, typename Rule>
auto& value_of(Call<Rule>& call) {
  if constexpr (has_value<decltype(call.own), Name>) {
    return value_of<Name>(call.own);
  } else {
    return value_of<Name>(call.common);
  }
}

// What a C++ type is called in PyTorch's schemas, and in Python. The dispatcher takes no choice of a number or a
// tensor: a Number has an overload for each.
struct TypeName {
  const char *schema, *python;
};

template <typename T>
inline constexpr TypeName type_name = {};
template <>
inline constexpr TypeName type_name<bool> = {"bool", "bool"};
template <>
inline constexpr TypeName type_name<int64_t> = {"int", "int"};
template <>
inline constexpr TypeName type_name<double> = {"float", "float"};
template <>
inline constexpr TypeName type_name<std::string> = {"str", "str"};
template <>
inline constexpr TypeName type_name<Number> = {nullptr, "float | Tensor"};
template <>
inline constexpr TypeName type_name<std::optional<Number>> = {"Tensor?", "float | Tensor | None"};
template <>
inline constexpr TypeName type_name<at::Tensor> = {"Tensor", "Tensor"};
template <>
inline constexpr TypeName type_name<std::optional<at::Tensor>> = {"Tensor?", "Tensor | None"};
template <>
inline constexpr TypeName type_name<TensorList> = {"Tensor[]", "Sequence[Tensor]"};

// A default as it is written in both.
inline std::string literal(bool value) { return value ? "True" : "False"; }
inline std::string literal(int64_t value) { return std::to_string(value); }
inline std::string literal(const std::string& value) { return "\"" + value + "\""; }
template <typename T>
std::string literal(const std::optional<T>&) {
  return "None";
}

template <typename... Lists, typename... Arguments>
std::string schema(const std::string& name, const char* rate, Types<Lists...>, Types<Arguments...>) {
  std::string text = name + "(";
  char alias = 'a';
  const auto add_list = [&](const char* list, bool is_written) {
    text += is_written ? std::string("Tensor(") + alias++ + "!)[] " : "Tensor[] ";
    text += std::string(list) + ", ";
  };
  (add_list(Lists::name(), Lists::is_written), ...);
  text += "*";
  const auto add_argument = [&]<typename A>(Types<A>) {
    const bool is_rate = std::is_same_v<typename A::Type, Number>;
    text += std::string(", ") + (is_rate ? rate : type_name<typename A::Type>.schema) + " " + A::name();
    if constexpr (A::has_default) text += "=" + literal(A::default_value());
  };
  (add_argument(Types<Arguments>()), ...);
  return text + ") -> ()";
}

// "lion_(Tensor(a!)[] params, Tensor[] grads, ..., *, Scalar lr, ...) -> ()", with a name of the overload and a type of
// lr.
template <typename Rule>
std::string schema(const std::string& overload, const char* rate) {
  const std::string name = std::string(Rule::name) + "_" + (overload.empty() ? "" : "." + overload);
  return schema(name, rate, ListsOf<Rule>(), ArgumentsOf<Rule>());
}

// Calls `visit(Types<Rule>())` for every rule, or for every type in another list.
template <typename Visit, typename... All>
void for_each_rule(const Visit& visit, Types<All...>) {
  (visit(Types<All>()), ...);
}
template <typename Visit>
void for_each_rule(const Visit& visit) {
  for_each_rule(visit, Rules());
}

}  // namespace sage_ext::ops
