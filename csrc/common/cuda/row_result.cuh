#pragma once

#include "common/cuda/threshold.cuh"
#include "common/cuda/workspace.cuh"

// From what the blocks found in a row's slices to all there is to know of the row.
namespace pearl::cuda {

// A draw, and the mass, over a whole row by one block. All threads of the block call it, and all get the result. parts: of
// the row's tiles, or null
struct Swept {
  float lse;
  uint64_t winner;
};
__device__ __forceinline__ Swept sweep_row(const Row& row, const RowTask& task, const TilePart* parts, float threshold,
                                           float highest) {
  const float inverse_temperature = task.filter.inverse_temperature, scale = inverse_temperature * kLog2E;
  double mass = 0;
  uint64_t best = 0;
  for_tiles_from(row, parts, threshold, [&](uint32_t begin, const Tile& tile) {
    mass += held_mass<false>(tile, threshold, highest, scale);
    if (task.draws) best = race_for_row<false>(row, task, tile, begin, threshold, best);
  });
  mass = block_sum(mass);
  best = block_max(best);
  return {static_cast<float>(static_cast<double>(highest) * inverse_temperature + log(mass)), best};
}

__device__ __forceinline__ int32_t status_of(float highest, const RowTask& task) {
  if (highest == INFINITY) return kTargetInvalid;
  if (highest == -INFINITY) return kEmptyDistribution;
  const bool has_number = fabsf(highest * task.filter.inverse_temperature) < INFINITY;  // NaN is none either
  return task.greedy || has_number ? kOk : kTargetInvalid;
}

// Asks for what `look_at_slices` begins with, while all that says what to look for has yet to come. By the whole block.
__device__ __forceinline__ void prefetch_first(const Row& row, const Split& split, uint32_t block) {
  prefetch_tile(row, split.first(block) * kSlice + warp_index() * kTile);
}

// Puts what is in the slices of the row's block number `block` into `scratch`. All threads of the block call it.
__device__ __forceinline__ void look_at_slices(const Row& row, const RowTask& task, const Split& split, uint32_t block,
                                               const RowScratch& scratch) {
  WarpBest best{0, 0};
  for_slices(
      split.first(block), split.end(block), [&](uint32_t begin) { prefetch_tile(row, begin); },
      [&](uint32_t begin) {
        if (begin >= row.size) return;
        const TilePart part = look_at_tile(row, task, begin, best);
        if (lane_index() == 0) scratch.parts[begin / kTile] = part;
      });
  if (lane_index() == 0) scratch.bests[block * kWarps + warp_index()] = best;
}

// What there is to know of a row, but for what only a filter lets through, once `blocks` have looked at all of it. By a
// whole warp; all lanes get the result.
__device__ __forceinline__ RowResult merge_parts(const Row& row, const RowTask& task, const RowScratch& scratch,
                                                 uint32_t blocks) {
  WarpBest best{0, 0};
  for_lane(
      blocks * kWarps,
      [&](uint32_t i) { return WarpBest{__ldcg(&scratch.bests[i].peak), __ldcg(&scratch.bests[i].winner)}; },
      [&](const WarpBest& found) {
        best.peak = max(best.peak, found.peak);
        best.winner = max(best.winner, found.winner);
      });
  best.peak = warp_max(best.peak);
  best.winner = warp_max(best.winner);
  const float highest = packed_value(best.peak), inverse_temperature = task.filter.inverse_temperature;
  double mass = 0;
  if (!task.greedy) {
    const float scale = inverse_temperature * kLog2E;
    for_lane((row.size + kTile - 1) / kTile,
             [&](uint32_t t) { return TilePart{__ldcg(&scratch.parts[t].highest), __ldcg(&scratch.parts[t].mass)}; },
             [&](const TilePart& part) {
               if (part.mass > 0) mass += static_cast<double>(part.mass) * exp2_of((part.highest - highest) * scale);
             });
    mass = warp_sum(mass);
  }
  const float lse = static_cast<float>(static_cast<double>(highest) * inverse_temperature + log(mass));
  const uint32_t drawn = best.winner != 0 ? packed_id(best.winner) : task.excluded;
  return {lse, -INFINITY, highest, packed_id(best.peak), drawn, status_of(highest, task)};
}

// The same with the filter's part. Called by all threads of the last of `blocks` that looked at the row; all get the
// result.
__device__ __forceinline__ RowResult finish_row(const Row& row, const RowTask& task, const RowScratch& scratch,
                                                uint32_t blocks) {
  __shared__ RowResult result;
  if (warp_index() == 0) {
    const RowResult merged = merge_parts(row, task, scratch, blocks);
    if (lane_index() == 0) result = merged;
  }
  __syncthreads();
  if (result.status != kOk || !task.filters(row.size)) return result;
  const float threshold = find_threshold(row, scratch.parts, task.filter, result.highest);
  const Swept swept = sweep_row(row, task, scratch.parts, threshold, result.highest);
  const uint32_t drawn = swept.winner != 0 ? packed_id(swept.winner) : task.excluded;
  return {swept.lse, threshold, result.highest, result.best, drawn, kOk};
}

}  // namespace pearl::cuda
