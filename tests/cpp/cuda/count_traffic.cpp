// Prints, as one JSON document, what every rule's launches move: on a small Llama on the emulator, launch by launch,
// and planned for one of 7B parameters.
#include <cstdio>
#include <string>
#include <vector>

#include "core/launch_plan.h"
#include "core/sign_planes.h"
#include "cuda/adamw.h"
#include "cuda/alias.h"
#include "cuda/alias_adam.h"
#include "cuda/common/block_slots.cuh"
#include "cuda/common/elements.cuh"
#include "cuda/common/launch.h"
#include "cuda/lion.h"
#include "cuda/sage.h"
#include "cuda/sign_sgd.h"
#include "cuda/sinkgd.h"
#include "llama_shapes.h"
#include "simt/simt.h"

namespace sage_ext {
namespace {

using testing::Buffer;
using testing::kLlama7B;
using testing::kSmallLlama;
using testing::llama_shapes;
using testing::Random;
using testing::Shape;

// Memory for a model, or, to plan with, none.
class Model {
 public:
  Model(const std::vector<Shape>& shapes, DType dtype, DType state_dtype, bool has_memory) {
    Random random(1);
    for (const Shape& shape : shapes) {
      const int64_t numel = has_memory ? shape.rows * shape.cols : 0;
      Tensor& t = tensors_.emplace_back(Tensor{
          shape, Buffer(dtype, numel), Buffer(dtype, numel), Buffer(state_dtype, numel), Buffer(state_dtype, numel),
          Buffer(DType::float32, has_memory ? shape.cols : 0), Buffer(DType::float32, has_memory ? 1 : 0),
          Buffer(DType::float32, 2 * sign_words(numel)), Buffer(DType::float32, 2 * kAliasAdamScalars)});
      fill_normal(t.grad, random, 1.0);
    }
  }

  template <typename MakeTensor>
  auto map(const MakeTensor& make) {
    std::vector<decltype(make(tensors_[0]))> result;
    for (Tensor& tensor : tensors_) result.push_back(make(tensor));
    return result;
  }

  struct Tensor {
    Shape shape;
    Buffer param, grad, exp_avg, exp_avg_sq, s_range, step, signs, scalars;

    int64_t numel() const { return shape.rows * shape.cols; }
  };

 private:
  std::vector<Tensor> tensors_;
};

struct Rule {
  const char* name;
  bool norms;       // takes parameters of one dimension as well
  bool wide_state;  // fp32 in any case
  int states;       // arrays
  bool signs = false;
};

constexpr Rule kRules[] = {{"sinkgd", false, false, 0},     {"sage", true, false, 1},
                           {"lion", true, false, 1},        {"sign_sgd", true, false, 0},
                           {"signum", true, false, 1},      {"adamw", true, true, 2},
                           {"alias", true, false, 0, true}, {"alias_lower_bound", true, false, 0},
                           {"alias_base", true, false, 1},  {"alias_adam", true, true, 2, true}};

bool is_alias(const std::string& name) { return name.starts_with("alias") && name != "alias_adam"; }

// The step of a rule: how much scratch it needs, and the launches.
template <typename Use>
void with_tensors(const Rule& rule, Model& model, const Use& use) {
  const std::string name = rule.name;
  cuda::StepScalars scalars;
  scalars.lr = 1e-2;
  if (name == "sinkgd") {
    const auto tensors = model.map([](Model::Tensor& t) {
      return cuda::SinkGDTensor{t.param.data(),  t.grad.data(), 1, t.shape.rows, t.shape.cols,
                                t.param.dtype(), t.grad.dtype()};
    });
    use(cuda::sinkgd_workspace_bytes(tensors),
        [&](void* scratch) { cuda::sinkgd_step(tensors, {0.25, 1e-8, 0.1, 5, false}, scalars, scratch, nullptr); });
  } else if (name == "lion") {
    const auto tensors = model.map([](Model::Tensor& t) {
      return cuda::LionTensor{t.param.data(),  t.grad.data(),  t.exp_avg.data(), t.numel(),
                              t.param.dtype(), t.grad.dtype(), t.exp_avg.dtype()};
    });
    use(int64_t{0}, [&](void*) { cuda::lion_step(tensors, {0.9, 0.99, 0.1}, scalars, nullptr); });
  } else if (name == "sign_sgd" || name == "signum") {
    const auto tensors = model.map([&](Model::Tensor& t) {
      void* const exp_avg = rule.states > 0 ? t.exp_avg.data() : nullptr;
      return cuda::SignSGDTensor{t.param.data(),  t.grad.data(),  exp_avg,          t.numel(),
                                 t.param.dtype(), t.grad.dtype(), t.exp_avg.dtype()};
    });
    const double momentum = rule.states > 0 ? 0.9 : 0.0;
    use(int64_t{0}, [&](void*) { cuda::sign_sgd_step(tensors, {momentum, 0.1}, scalars, nullptr); });
  } else if (name == "sage") {
    const auto tensors = model.map([](Model::Tensor& t) {
      return cuda::SageTensor{t.param.data(), t.grad.data(), t.exp_avg.data(), t.s_range.floats(), t.step.floats(),
                              t.shape.rows,   t.shape.cols,  t.param.dtype(),  t.grad.dtype(),     t.exp_avg.dtype()};
    });
    use(cuda::sage_workspace_bytes(tensors), [&](void* scratch) {
      cuda::sage_step(tensors, {0.9, 0.99, 1e-8, 0.1, false, true}, scalars, scratch, nullptr);
    });
  } else if (name == "alias_adam") {
    const auto tensors = model.map([](Model::Tensor& t) {
      return cuda::AliasAdamTensor{t.param.data(),
                                   t.grad.data(),
                                   t.exp_avg.data(),
                                   t.exp_avg_sq.data(),
                                   reinterpret_cast<uint32_t*>(t.signs.floats()),
                                   reinterpret_cast<AliasAdamScalars*>(t.scalars.floats()),
                                   t.numel(),
                                   t.param.dtype(),
                                   t.grad.dtype(),
                                   t.exp_avg.dtype()};
    });
    use(cuda::alias_adam_workspace_bytes(tensors),
        [&](void* scratch) { cuda::alias_adam_step(tensors, {0.9, 0.999, 1e-8, 0.1}, scalars, scratch, nullptr); });
  } else if (is_alias(name)) {
    const auto tensors = model.map([&](Model::Tensor& t) {
      return cuda::AliasTensor{t.param.data(),
                               t.grad.data(),
                               rule.signs ? reinterpret_cast<uint32_t*>(t.signs.floats()) : nullptr,
                               rule.states > 0 ? t.exp_avg.data() : nullptr,
                               t.numel(),
                               t.param.dtype(),
                               t.grad.dtype()};
    });
    const AliasOptions options{.form = rule.states == 0 ? AliasForm::extrema : AliasForm::base,
                               .descent = rule.signs,
                               .lower_bound = 0.0,
                               .max_step = 1e-3,
                               .weight_decay = 0.1,
                               .warmup_steps = 0,
                               .update_every = 1,
                               .phase = AliasPhase::step};
    AliasScalars shared{};
    shared.step = 1.0;  // the first step does not look at what is kept of a gradient
    use(cuda::alias_workspace_bytes(tensors),
        [&](void* scratch) { cuda::alias_step(tensors, options, {}, scalars, &shared, scratch, nullptr); });
  } else {
    const auto tensors = model.map([](Model::Tensor& t) {
      return cuda::AdamWTensor{t.param.data(), t.grad.data(),   t.exp_avg.data(), t.exp_avg_sq.data(), t.step.floats(),
                               t.numel(),      t.param.dtype(), t.grad.dtype(),   t.exp_avg.dtype()};
    });
    use(cuda::adamw_workspace_bytes(tensors),
        [&](void* scratch) { cuda::adamw_step(tensors, {0.9, 0.999, 1e-8, 0.1}, scalars, scratch, nullptr); });
  }
}

// Bytes that a step moves beside parameters, gradients and states, from the plans.
int64_t scratch_traffic(const Rule& rule, const std::vector<Shape>& shapes, DType dtype) {
  const int64_t vec = 16 / itemsize(dtype);
  const int64_t total = testing::count_elements(shapes);
  int64_t bytes = 0;
  // A block's slots there and back, and its tick of the counter.
  const int64_t slot_bytes = is_alias(rule.name) ? 2 * (32 + 8 + 4) : std::string(rule.name) == "alias_adam" ? 16 : 0;
  for (const Shape& s : shapes) {
    bytes += slot_bytes * ceil_div(s.rows * s.cols, cuda::slot_chunk(total));
    if (std::string(rule.name) == "sage") {
      // The slots of the sums there and back; S read, S and s written, both read, lr * H written.
      bytes += 8 * plan_column_blocks(s.rows, s.cols, vec).slots * s.cols + 24 * s.cols;
    } else if (std::string(rule.name) == "sinkgd") {
      // An iteration writes and reads a number a column for every block of rows, which also reads the column scales;
      // and both vectors of scales there and back. (All matrices of this model fit one kind of block.)
      const SinkhornPlan plan = plan_sinkhorn(s.rows, s.cols, vec, true, sinkhorn_threads(s.cols, vec, true), total);
      bytes += 5 * (12 * plan.row_blocks * s.cols + 8 * (s.rows + s.cols));
    }
  }
  return bytes;
}

using Number = unsigned long long;

void print_launch(const simt::Launch& launch, bool is_last) {
  std::printf(
      "      {\"kernel\": \"%s\", \"grid\": %u, \"block\": %u, \"bytes_read\": %llu, \"bytes_written\": %llu, "
      "\"uniform_bytes\": %llu, \"sectors_read\": %llu, \"sectors_written\": %llu}%s\n",
      launch.kernel.c_str(), launch.grid.x, launch.block.x, static_cast<Number>(launch.bytes_read),
      static_cast<Number>(launch.bytes_written), static_cast<Number>(launch.uniform_bytes),
      static_cast<Number>(launch.sectors_read), static_cast<Number>(launch.sectors_written), is_last ? "" : ",");
}

void print_case(const Rule& rule, DType dtype, bool is_last) {
  const DType state = rule.wide_state ? DType::float32 : dtype;
  const std::vector<Shape> shapes = llama_shapes(kSmallLlama, rule.norms);
  const int64_t parameters = testing::count_elements(shapes);
  Model model(shapes, dtype, state, true);
  std::vector<simt::Launch> launches;
  with_tensors(rule, model, [&](int64_t scratch_bytes, const auto& step) {
    Buffer scratch(DType::float32, ceil_div(scratch_bytes, 4));
    simt::Session session({.count_sectors = true});
    step(scratch.data());
    launches = session.launches();
  });

  const std::vector<Shape> large = llama_shapes(kLlama7B, rule.norms);
  const int64_t large_parameters = testing::count_elements(large);
  int64_t large_scratch = 0;
  Model planned(large, dtype, state, false);
  with_tensors(rule, planned, [&](int64_t scratch_bytes, const auto&) { large_scratch = scratch_bytes; });

  uint64_t read = 0, written = 0;
  std::printf(
      "    {\"rule\": \"%s\", \"dtype\": \"%s\", \"state_dtype\": \"%s\", \"parameters\": %lld,\n"
      "     \"launches\": [\n",
      rule.name, name(dtype), rule.states == 0 ? "none" : name(state), static_cast<long long>(parameters));
  for (size_t i = 0; i < launches.size(); ++i) {
    read += launches[i].bytes_read;
    written += launches[i].bytes_written;
    print_launch(launches[i], i + 1 == launches.size());
  }
  // Gradients and parameters once in and parameters out, states in and out; SinkGD's gradient once an iteration, too,
  // and once more to be looked at: SAGE's, ALIAS-Adam's, and ALIAS's, unless its signs are at hand. They are a quarter
  // of a byte each; ALIAS reads them twice.
  const std::string rule_name = rule.name;
  const bool looks_twice = rule_name == "sage" || (rule_name.starts_with("alias") && rule_name != "alias");
  const int64_t passes = rule_name == "sinkgd" ? 5 : looks_twice ? 1 : 0;
  const double signs = !rule.signs ? 0.0 : rule_name == "alias" ? 0.75 : 0.5;
  const double floor = static_cast<double>(itemsize(dtype) * (3 + passes) + itemsize(state) * 2 * rule.states) + signs;
  std::printf(
      "     ],\n     \"launches_per_step\": %zu, \"floor_bytes_per_parameter\": %.4g, "
      "\"bytes_per_parameter\": %.4f,\n"
      "     \"llama_7b\": {\"tensors\": %zu, \"parameters\": %lld, \"launches_per_step\": %zu, "
      "\"scratch_bytes\": %lld, \"scratch_traffic_per_parameter\": %.4f}}%s\n",
      launches.size(), floor, static_cast<double>(read + written) / static_cast<double>(parameters), large.size(),
      static_cast<long long>(large_parameters), launches.size(), static_cast<long long>(large_scratch),
      static_cast<double>(scratch_traffic(rule, large, dtype)) / static_cast<double>(large_parameters),
      is_last ? "" : ",");
}

}  // namespace
}  // namespace sage_ext

int main() {
  using sage_ext::DType;
  std::printf(
      "{\n  \"model\": \"llama\", \"hidden\": 512, \"ffn\": 1376, \"layers\": 2, \"vocabulary\": 1000,\n"
      "  \"cases\": [\n");
  for (const auto& rule : sage_ext::kRules) {
    for (const DType dtype : {DType::bfloat16, DType::float32}) {
      sage_ext::print_case(rule, dtype, &rule == std::end(sage_ext::kRules) - 1 && dtype == DType::float32);
    }
  }
  std::printf("  ]\n}\n");
}
