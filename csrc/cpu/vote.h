#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/math/common.h"
#include "core/vote.h"

// A majority vote over the signs of gradients, in three passes: what one worker sends to the others, what becomes of
// what they have sent to it, and what that is to all. For the layout see core/vote.h.
namespace sage_ext::cpu {

// Dense arrays of `numel` elements. Without momentum exp_avg is null, and its dtype is not looked at.
struct Ballot {
  const void* grad;
  void* exp_avg;
  int64_t numel;
  DType grad_dtype, exp_avg_dtype;
};

// Packs the signs of the gradient or, with momentum, those of the momentum, which is brought up to date: `voters`
// pieces of `words` words a plane.
void pack_votes(const Ballot& ballot, const MomentumCoefficients& momentum, uint32_t* packed, int64_t voters,
                int64_t words, int threads);

// Counts one piece: that of each voter, one after the other, to a piece with the signs of the sums.
void count_votes(const uint32_t* received, uint32_t* result, int64_t voters, int64_t words, int threads);

// Unpacks all pieces to -1, 0 and 1, and NaN where a worker's number was not finite.
void unpack_votes(const uint32_t* packed, void* grad, DType dtype, int64_t numel, int64_t voters, int64_t words,
                  int threads);

}  // namespace sage_ext::cpu
