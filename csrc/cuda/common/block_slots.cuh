#pragma once

#include <algorithm>

#include "core/launch_plan.h"
#include "cuda/common/elements.cuh"

// Element-wise passes with a sum or a maximum over all elements: every block leaves its share in a slot of its own, and
// one block reads all slots, in an order that does not depend on how the others were scheduled.
namespace sage_ext::cuda {

// About as many blocks as a pass has at most, so that one block soon has read their slots: some eight for each place
// that a large GPU has for them.
inline constexpr int64_t kMaxSlots = 8192;

// Elements of a block in a pass over `total` of them.
inline int64_t slot_chunk(int64_t total) {
  return kMapChunk * std::max<int64_t>(ceil_div(total, kMapChunk * kMaxSlots), 1);
}

}  // namespace sage_ext::cuda
