#pragma once

#include "common/cuda/threshold.cuh"
#include "common/cuda/workspace.cuh"

// From what the blocks found in a row's slices to all there is to know of the row.
namespace pearl::cuda {

// A draw, and the mass, over a whole row by one block. All threads of the block call it, and all get the result. peaks: of
// the row's tiles, or null
struct Swept {
  float lse;
  uint64_t winner;
};
__device__ __forceinline__ Swept sweep_row(const Row& row, const RowTask& task, const float* peaks, float threshold,
                                           float highest) {
  const float inverse_temperature = task.filter.inverse_temperature, scale = inverse_temperature * kLog2E;
  double mass = 0;
  uint64_t best = 0;
  for_tiles_from(row, peaks, threshold, [&](uint32_t begin, const Tile& tile) {
    mass += held_mass<false>(tile, threshold, highest, scale);
    if (task.draws) best = race_for_row<false>(row, task, tile, begin, threshold, best);
  });
  mass = block_sum(mass);
  best = block_max(best);
  return {static_cast<float>(static_cast<double>(highest) * inverse_temperature + log(mass)), best};
}

__device__ __forceinline__ int32_t status_of(const RowPart& whole, const RowTask& task) {
  const float highest = packed_value(whole.peak);
  if (whole.invalid || highest == INFINITY) return kTargetInvalid;
  if (highest == -INFINITY) return kEmptyDistribution;
  const bool overflows = fabsf(highest * task.filter.inverse_temperature) == INFINITY;
  return !task.greedy && overflows ? kTargetInvalid : kOk;
}

// Puts what is in the block's slices of the row into `scratch`. All threads of the block call it.
__device__ __forceinline__ void look_at_slices(const Row& row, const RowTask& task, const Workspace& workspace,
                                               uint32_t block, const RowScratch& scratch) {
  workspace.for_slices(block, [&](uint32_t slice) {
    const uint32_t begin = slice * kSlice + warp_index() * kTile;
    if (begin >= row.size) return;
    const RowPart part = look_at_tile(row, task, begin, scratch.peaks);
    if (lane_index() == 0) scratch.parts[begin / kTile] = part;
  });
}

// Called by all threads of the block that came last with a slice of the row; all get the result.
__device__ __forceinline__ RowResult finish_row(const Row& row, const RowTask& task, const RowScratch& scratch) {
  const RowPart* const parts = scratch.parts;
  const uint32_t tiles = (row.size + kTile - 1) / kTile;
  __shared__ RowResult result;
  const float inverse_temperature = task.filter.inverse_temperature;
  if (warp_index() == 0) {
    RowPart whole{0, 0, 0.0f, 0};
    for (uint32_t t = lane_index(); t < tiles; t += kWarp) {
      whole.peak = max(whole.peak, __ldcg(&parts[t].peak));
      whole.winner = max(whole.winner, __ldcg(&parts[t].winner));
      whole.invalid |= __ldcg(&parts[t].invalid);
    }
    whole.peak = warp_max(whole.peak);
    whole.winner = warp_max(whole.winner);
    whole.invalid = __any_sync(kAllLanes, whole.invalid);
    const float highest = packed_value(whole.peak);
    const double shift = static_cast<double>(highest) * inverse_temperature;
    double mass = 0;
    for (uint32_t t = lane_index(); t < tiles; t += kWarp) {
      const float own = __ldcg(&parts[t].mass);
      if (own > 0) {
        mass += own * exp(static_cast<double>(packed_value(__ldcg(&parts[t].peak))) * inverse_temperature - shift);
      }
    }
    mass = warp_sum(mass);
    if (lane_index() == 0) {
      const uint32_t drawn = whole.winner != 0 ? packed_id(whole.winner) : task.excluded;
      result = {static_cast<float>(shift + log(mass)),
                -INFINITY,
                highest,
                packed_id(whole.peak),
                drawn,
                status_of(whole, task)};
    }
  }
  __syncthreads();
  RowResult known = result;
  if (known.status != kOk || !task.filters(row.size)) return known;
  known.threshold = find_threshold(row, scratch.peaks, task.filter, known.highest);
  const Swept swept = sweep_row(row, task, scratch.peaks, known.threshold, known.highest);
  known.lse = swept.lse;
  known.drawn = swept.winner != 0 ? packed_id(swept.winner) : task.excluded;
  return known;
}

}  // namespace pearl::cuda
