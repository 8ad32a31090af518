#pragma once

#include "common/cuda/row.cuh"
#include "common/philox.h"

// Gumbel-argmax races: id v's score is log(weight(v)) + gumbel(v), and the highest wins, of equal ones the lowest id.
// Scores and ids travel packed, see `pack`; 0 is a race that nobody won.
namespace pearl::cuda {

constexpr float kLn2 = 0.69314718f;
constexpr float kMostGumbel = 16.64f;  // -log(-log(u)) at the largest u, 1 - 2^-24, and a little more

// 1 - u for the u of a word, exact: a lower bound of -log(u).
__device__ __forceinline__ float one_minus_unit(uint32_t word) {
  return (static_cast<float>(~word >> 9) + 0.5f) * 0x1p-23f;
}

__device__ __forceinline__ float unit(uint32_t word) { return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f; }

// A score so far below that no rounding of the bounds can hide a better one. -inf stays -inf.
__device__ __forceinline__ float slightly_below(float score) { return score - (1e-3f + 1e-6f * fabsf(score)); }

// Which of the logits in the lane's tile may still beat `best`, a bit each: a bound on the score, log weight + gumbel,
// is enough to rule nearly all of them out without a Philox counter, or at least without an exact logarithm.
//
// log_weight(x): an upper bound, rising with x
template <typename LogWeight>
__device__ __forceinline__ uint32_t contenders(const Tile& tile, uint32_t begin, const NoiseKey& key, uint64_t best,
                                               const LogWeight& log_weight) {
  const float cut = best == 0 ? -INFINITY : slightly_below(packed_value(best));
  uint32_t mask = 0;
#pragma unroll
  for (int first = 0; first < kHeld; first += kPhiloxLanes) {
    float most = tile.x[first];
#pragma unroll
    for (int k = 1; k < kPhiloxLanes; ++k) most = fmaxf(most, tile.x[first + k]);
    if (!(log_weight(most) + kMostGumbel > cut)) continue;
    const PhiloxWords words = philox_words(key, held_id(begin, first) / kPhiloxLanes);
#pragma unroll
    for (int k = 0; k < kPhiloxLanes; ++k) {
      const float gumbel_bound = -kLn2 * log2_of(one_minus_unit(words.w[k]));
      if (log_weight(tile.x[first + k]) + gumbel_bound > cut) mask |= 1u << (first + k);
    }
  }
  return mask;
}

// The highest of the logits in the lane's tile, a bit as of `contenders`; none where it weighs nothing.
template <typename LogWeight>
__device__ __forceinline__ uint32_t highest_held(const Tile& tile, const LogWeight& log_weight) {
  float highest = tile.x[0];
  uint32_t mask = 1;
#pragma unroll
  for (int i = 1; i < kHeld; ++i) {
    if (tile.x[i] > highest) {
      highest = tile.x[i];
      mask = 1u << i;
    }
  }
  return log_weight(highest) > -INFINITY ? mask : 0;
}

// The better of `best` and those of `mask`; score(id) is exact, or -inf for one that may not win. The lane's `begin` and
// `mask`.
template <typename Score>
__device__ __forceinline__ uint64_t better_of(uint32_t begin, uint32_t mask, uint64_t best, const Score& score) {
  for (; mask != 0; mask &= mask - 1) {
    const uint32_t id = held_id(begin, __ffs(static_cast<int>(mask)) - 1);
    const float value = score(id);
    if (!(value > -INFINITY)) continue;
    const uint64_t entry = pack(value, id);
    best = entry > best ? entry : best;
  }
  return best;
}

// The better of `best` and the winner of the tile. An exact score is dear: with one for each lane, of its highest logit,
// few others are left that may be better, and with the best of tiles before mostly none. By a whole warp; all lanes have
// `best`, and get the result.
template <typename LogWeight, typename Score>
__device__ __forceinline__ uint64_t race(const Tile& tile, uint32_t begin, const NoiseKey& key, uint64_t best,
                                         const LogWeight& log_weight, const Score& score) {
#pragma unroll 1  // not twice the code
  for (bool first = best == 0;; first = false) {
    const uint32_t mask = first ? highest_held(tile, log_weight) : contenders(tile, begin, key, best, log_weight);
    if (__any_sync(kAllLanes, mask != 0)) best = warp_max(better_of(begin, mask, best, score));
    if (!first) return best;
  }
}

__device__ __forceinline__ float gumbel(const NoiseKey& key, uint32_t id) {
  return -logf(-logf(unit(philox_word(key, id))));
}

}  // namespace pearl::cuda
