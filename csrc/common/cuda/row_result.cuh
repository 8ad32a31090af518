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

// Puts what is in the slices [first, end) of the row into `scratch`. All threads of the block call it.
__device__ __forceinline__ void look_at_slices(const Row& row, const RowTask& task, uint32_t first, uint32_t end,
                                               const RowScratch& scratch) {
  for_slices(
      first, end, [&](uint32_t begin) { prefetch_tile(row, begin); },
      [&](uint32_t begin) {
        if (begin >= row.size) return;
        const RowPart part = look_at_tile(row, task, begin, scratch.peaks);
        if (lane_index() == 0) scratch.parts[begin / kTile] = part;
      });
}

// What there is to know of a row, but for what only a filter lets through, once all its slices were looked at. By a whole
// warp; all lanes get the result.
__device__ __forceinline__ RowResult merge_parts(const Row& row, const RowTask& task, const RowPart* parts) {
  constexpr int kAtOnce = 4;  // loads, each as far away as memory of other multiprocessors is
  const uint32_t tiles = (row.size + kTile - 1) / kTile;
  RowPart whole{0, 0, 0.0f, 0};
#pragma unroll kAtOnce
  for (uint32_t t = lane_index(); t < tiles; t += kWarp) {
    whole.peak = max(whole.peak, __ldcg(&parts[t].peak));
    whole.winner = max(whole.winner, __ldcg(&parts[t].winner));
    whole.invalid |= __ldcg(&parts[t].invalid);
  }
  whole.peak = warp_max(whole.peak);
  whole.winner = warp_max(whole.winner);
  whole.invalid = __any_sync(kAllLanes, whole.invalid);
  const float highest = packed_value(whole.peak), inverse_temperature = task.filter.inverse_temperature;
  double mass = 0;
  if (!task.greedy) {
    const float scale = inverse_temperature * kLog2E;
#pragma unroll kAtOnce
    for (uint32_t t = lane_index(); t < tiles; t += kWarp) {
      const float own = __ldcg(&parts[t].mass), peak = packed_value(__ldcg(&parts[t].peak));
      if (own > 0) mass += static_cast<double>(own) * exp2_of((peak - highest) * scale);
    }
    mass = warp_sum(mass);
  }
  const float lse = static_cast<float>(static_cast<double>(highest) * inverse_temperature + log(mass));
  const uint32_t drawn = whole.winner != 0 ? packed_id(whole.winner) : task.excluded;
  return {lse, -INFINITY, highest, packed_id(whole.peak), drawn, status_of(whole, task)};
}

// The same with the filter's part. Called by all threads of the block that came last with a slice of the row; all get
// the result.
__device__ __forceinline__ RowResult finish_row(const Row& row, const RowTask& task, const RowScratch& scratch) {
  __shared__ RowResult result;
  if (warp_index() == 0) {
    const RowResult merged = merge_parts(row, task, scratch.parts);
    if (lane_index() == 0) result = merged;
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
