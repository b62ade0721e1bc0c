#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/sign_planes.h"

// A majority vote over signs: how the votes of one worker are packed into pieces, one for each worker to count.
//
// The votes on `numel` coordinates are cut into `voters` pieces of vote_words() words: 32 coordinates a word, the first
// ones in piece 0. A piece is two bit planes of so many words, first the one of votes for +1, then the one of votes for
// -1; pieces lie one after the other. Bits behind the last coordinate are 0, as are both bits of a vote for 0. Both
// bits are set where a worker's number is not finite: whoever counts sets both then, and in the end it is a NaN
// everywhere.
namespace sage_ext {

inline constexpr int64_t kVoteWords = 4;  // words come in 16 bytes

// The words of a plane in a piece, a multiple of kVoteWords.
inline constexpr int64_t vote_words(int64_t numel, int64_t voters) {
  return ceil_div(ceil_div(sign_words(numel), voters), kVoteWords) * kVoteWords;
}

// What a range of the coordinates of a piece is in the whole: where it begins, and how many of them there are.
struct VoteRange {
  int64_t begin, count;
};

SAGE_EXT_HD VoteRange vote_range(int64_t piece, int64_t words, int64_t begin, int64_t size, int64_t numel) {
  const int64_t first = piece * words * kSignsPerWord + begin;
  const int64_t left = numel > first ? numel - first : 0;
  return {first, left < size ? left : size};
}

}  // namespace sage_ext
