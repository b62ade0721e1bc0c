#include "cpu/alias.h"

#include <cstring>
#include <vector>

#include "core/math/sign.h"
#include "core/sign_planes.h"
#include "cpu/common/isa.h"
#include "cpu/common/map.h"
#include "cpu/common/observe.h"
#include "cpu/common/x86_intrinsics.h"

namespace sage_ext::cpu {

struct Displacement {
  double sum = 0.0;
  double max = 0.0;
};

using AliasMove = Displacement (*)(const AliasTensor&, int64_t begin, int64_t end, float step, float decay,
                                   float grad_factor);

}  // namespace sage_ext::cpu

#define SAGE_EXT_ISA_SOURCE "cpu/alias_kernels.inl"
#include "cpu/common/foreach_isa.inl"

namespace sage_ext::cpu {

namespace {

static_assert(kMapChunk % kSignsPerWord == 0, "a word of the sign planes belongs to one chunk");

AliasObservation observe(std::span<const AliasTensor> tensors, const AliasOptions& options, bool record,
                         float grad_factor, float prev_factor, int threads) {
  const std::vector<ChunkResult<Observation>> parts =
      reduce_chunks<Observation>(tensors, threads, [&](const AliasTensor& t, int64_t begin, int64_t end) {
        const Span span{begin, end, t.numel};
        switch (options.form) {
          case AliasForm::base:
            return observe_difference(t.grad, t.grad_dtype, span, grad_factor, t.prev_grad, prev_factor, record);
          case AliasForm::sum:
            return observe_norm(t.grad, t.grad_dtype, span, grad_factor, t.signs, record);
          default:
            return observe_extrema(t.grad, t.grad_dtype, span, grad_factor, t.signs, record);
        }
      });
  AliasObservation seen{};
  if (!parts.empty()) {
    seen.grad_max = static_cast<double>(parts[0].value.max);
    seen.grad_min = static_cast<double>(parts[0].value.min);
  }
  for (const auto& [tensor, part] : parts) {
    seen.inner += part.inner;
    seen.norm += part.norm;
    seen.grad_max = keep_nan_max(static_cast<double>(part.max), seen.grad_max);
    seen.grad_min = keep_nan_min(static_cast<double>(part.min), seen.grad_min);
  }
  return seen;
}

}  // namespace

void alias_step(std::span<const AliasTensor> tensors, const AliasOptions& options, const AliasStep& step,
                AliasScalars& shared, int threads) {
  const double number = alias_step(shared, options);
  const bool observes = alias_observes(number, options);
  const auto grad_factor = static_cast<float>(step.grad_factor);
  AliasObservation seen{};
  if (observes) {
    seen = observe(tensors, options, alias_records(number, options), grad_factor,
                   static_cast<float>(shared.grad_factor), threads);
  }
  alias_advance(shared, seen, step.lr, step.loss, step.grad_factor, options);
  if (options.phase == AliasPhase::refresh) return;

  const auto gamma = static_cast<float>(shared.step_size);
  const float decay = decay_factor(shared.step_size, options.weight_decay);
  // Fresh planes have the gradient's signs in a sixteenth of its bytes, or an eighth.
  const bool by_signs = alias_keeps_signs(options) && alias_records(number, options);
  double sum = 0.0;
  double max = 0.0;
  for (const auto& [tensor, part] :
       reduce_chunks<Displacement>(tensors, threads, [&](const AliasTensor& t, int64_t begin, int64_t end) {
         const AliasMove move = by_signs ? SAGE_EXT_FOR_ACTIVE_ISA(select_move_by_signs(t))
                                         : SAGE_EXT_FOR_ACTIVE_ISA(select_move_by_grads(t));
         return move(t, begin, end, gamma, decay, grad_factor);
       })) {
    sum += part.sum;
    max = keep_nan_max(part.max, max);
  }
  shared.displacement = alias_adds_distances(options) ? sum : max;
}

}  // namespace sage_ext::cpu
