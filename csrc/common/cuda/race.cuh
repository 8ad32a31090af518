#pragma once

#include "common/cuda/row.cuh"
#include "common/philox.h"

// Gumbel-argmax races: id v's score is log(weight(v)) + gumbel(v), and the highest wins, of equal ones the lowest id.
// Scores and ids travel packed, see `pack`; 0 is a race that nobody won.
namespace pearl::cuda {

constexpr float kLog2E = 1.44269504f;
constexpr float kMostGumbel = 16.64f;  // -log(-log(u)) at the largest u, 1 - 2^-24, and a little more

__device__ __forceinline__ float unit(uint32_t word) { return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f; }

// A score so far below that no rounding of the bounds can hide a better one. -inf stays -inf.
__device__ __forceinline__ float slightly_below(float score) { return score - (1e-3f + 1e-6f * fabsf(score)); }

// A word may only stand for a gumbel of -lead or more if ~word is at most this: -log(-log(u)) <= -log(1 - u), and 1 - u is
// (~word >> 9) + 1/2 steps of 2^-23.
__device__ __forceinline__ uint32_t largest_complement(float lead) {
  const float rest = exp2_of(lead * kLog2E);  // of 1 - u
  return rest < 0.999f ? static_cast<uint32_t>(rest * 0x1p32f) + 512 : 0xffffffffu;
}

// The ids of one Philox counter that may still win, and a bound on the log weight of each.
struct Group {
  uint32_t first;
  float most;
};

// Where a warp collects the groups of a tile.
__device__ __forceinline__ Group* groups_of_warp() {
  constexpr int kGroups = kTile / kPhiloxLanes;
  __shared__ Group groups[kWarps * kGroups];
  return groups + warp_index() * kGroups;
}

// The better of `best` and `id`; score(id) is exact, or -inf for one that may not win, as are those past the row's end.
template <typename Score>
__device__ __forceinline__ uint64_t better(uint64_t best, uint32_t id, const Score& score) {
  const float value = score(id);
  return value > -INFINITY ? max(best, pack(value, id)) : best;
}

// The highest of the logits in the lane's tile, if it weighs anything, or `best` if that is better.
template <typename LogWeight, typename Score>
__device__ __forceinline__ uint64_t enter_highest(const Tile& tile, uint32_t begin, uint64_t best,
                                                  const LogWeight& log_weight, const Score& score) {
  float highest = tile.x[0];
  int at = 0;
#pragma unroll
  for (int i = 1; i < kHeld; ++i) {
    if (tile.x[i] > highest) {
      highest = tile.x[i];
      at = i;
    }
  }
  return log_weight(highest) > -INFINITY ? better(best, held_id(begin, at), score) : best;
}

// The better of `best` and the winner of the tile. Exact scores are dear, and so are Philox counters: with a score for each
// lane, of its highest logit, most groups of ids are ruled out by a bound on what they weigh, and all but a few of the
// others' by their words. The groups that are left are spread over the lanes, as each has few of them. By a whole warp; all
// lanes have `best`, and get the result.
//
// log_weight(x): an upper bound, rising with x
template <typename LogWeight, typename Score>
__device__ __forceinline__ uint64_t race(const Tile& tile, uint32_t begin, const NoiseKey& key, uint64_t best,
                                         const LogWeight& log_weight, const Score& score) {
  if (best == 0) best = warp_max(enter_highest(tile, begin, best, log_weight, score));
  const float cut = best == 0 ? -INFINITY : slightly_below(packed_value(best));
  Group* const groups = groups_of_warp();
  const unsigned lanes_before = (1u << lane_index()) - 1;
  int count = 0;
#pragma unroll
  for (int held = 0; held < kHeld; held += kPhiloxLanes) {
    float most = tile.x[held];
#pragma unroll
    for (int k = 1; k < kPhiloxLanes; ++k) most = fmaxf(most, tile.x[held + k]);
    most = log_weight(most);
    const bool may_win = most + kMostGumbel > cut;
    const unsigned lanes = __ballot_sync(kAllLanes, may_win);
    if (may_win) groups[count + __popc(lanes & lanes_before)] = {held_id(begin, held), most};
    count += __popc(lanes);
  }
  if (count == 0) return best;
  __syncwarp();
  uint64_t own = best;
  for (int i = lane_index(); i < count; i += kWarp) {
    const Group group = groups[i];
    const PhiloxWords words = philox_words(key, group.first / kPhiloxLanes);
    const uint32_t limit = largest_complement(group.most - cut);
    uint32_t mask = 0;
#pragma unroll
    for (int k = 0; k < kPhiloxLanes; ++k) mask |= static_cast<uint32_t>(~words.w[k] <= limit) << k;
    for (; mask != 0; mask &= mask - 1) own = better(own, group.first + __ffs(static_cast<int>(mask)) - 1, score);
  }
  __syncwarp();  // before the next tile's groups take their place
  return __any_sync(kAllLanes, own != best) ? warp_max(own) : best;
}

__device__ __forceinline__ float gumbel(const NoiseKey& key, uint32_t id) {
  return -logf(-logf(unit(philox_word(key, id))));
}

}  // namespace pearl::cuda
