#pragma once

#include "common/cuda/race.cuh"

// What is wanted of a row, what a block finds in its slice of it, and what is known once all slices are in.
namespace pearl::cuda {

constexpr uint32_t kNoId = 0xffffffffu;

struct Filter {
  float temperature;
  float inverse_temperature;  // 1 where greedy
  int32_t top_k;
  float top_p;
  float min_p;

  __device__ bool greedy() const { return temperature == 0.0f; }
  __device__ bool limits_count(uint32_t vocab) const { return top_k > 0 && static_cast<uint32_t>(top_k) < vocab; }
  __device__ bool limits_mass() const { return top_p < 1.0f; }
  __device__ bool keeps_all(uint32_t vocab) const { return !limits_count(vocab) && !limits_mass() && !(min_p > 0.0f); }
};

__device__ __forceinline__ Filter filter_of(const SamplingParams& params, int64_t batch) {
  const float temperature = params.temperature[batch];
  return {temperature, temperature == 0.0f ? 1.0f : inverse_of(temperature), params.top_k[batch], params.top_p[batch],
          params.min_p[batch]};
}

struct RowTask {
  Filter filter;
  bool greedy;        // nothing but the argmax is wanted
  bool draws;         // a Gumbel-argmax draw is wanted
  NoiseKey noise;     // of the draw
  uint32_t excluded;  // from the draw; kNoId: nothing is

  __device__ bool filters(uint32_t vocab) const { return !greedy && !filter.keeps_all(vocab); }
};

// Of rule greedy: the best logit of a row, and no more.
__device__ constexpr RowTask kArgmax{{}, true, false, {}, kNoId};

// What is in a tile of a row.
struct TilePart {
  float highest;  // +inf if there is one that no model should give: NaN or +inf
  float mass;     // sum of exp((logit - highest) / temperature); 0 where a filter decides later what takes part
};

// What is best of the tiles that a warp looked at, packed.
struct WarpBest {
  uint64_t peak;    // the highest logit
  uint64_t winner;  // of the draw; 0 where a filter decides later who takes part
};

// What blocks leave of a row for the one that comes last.
struct RowScratch {
  TilePart* parts;  // (slices, kWarps)
  WarpBest* bests;  // (blocks, kWarps)
};

// How a row's slices are shared out to blocks. What is found does not depend on it.
struct Split {
  uint32_t slices;  // of a row
  uint32_t slices_per_block;
  uint32_t blocks;

  __device__ __forceinline__ uint32_t first(uint32_t block) const { return block * slices_per_block; }
  __device__ __forceinline__ uint32_t end(uint32_t block) const { return min(slices, (block + 1) * slices_per_block); }
};

struct RowResult {
  float lse;  // log of the sum of exp(logit / temperature) over what is kept
  float threshold;
  float highest;
  uint32_t best;  // argmax
  uint32_t drawn;
  int32_t status;
};

// Sum of exp((x - reference) * scale / log2(e)), over what a lane holds at or above `threshold`; kAll: over all of it.
template <bool kAll>
__device__ __forceinline__ float held_mass(const Tile& tile, float threshold, float reference, float scale) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const float power = exp2_of((tile.x[i] - reference) * scale);
    sum += kAll || tile.x[i] >= threshold ? power : 0.0f;
  }
  return sum;
}

template <bool kAll>
__device__ __forceinline__ uint64_t race_for_row(const Row& row, const RowTask& task, const Tile& tile, uint32_t begin,
                                                 float threshold, uint64_t best) {
  const float inverse_temperature = task.filter.inverse_temperature;
  const auto kept = [&](float x) { return kAll || x >= threshold; };
  return race(
      tile, begin, task.noise, best, [&](float x) { return kept(x) ? x * inverse_temperature : -INFINITY; },
      [&](uint32_t id) {
        if (id == task.excluded || id >= row.size) return -INFINITY;
        const float x = row.at(id);
        return kept(x) ? fmaf(x, inverse_temperature, gumbel(task.noise, id)) : -INFINITY;
      });
}

// The lowest id of the tile whose logit is `highest`. By a whole warp; all lanes get the result.
__device__ __forceinline__ uint32_t id_of(const Tile& tile, uint32_t begin, float highest) {
  uint32_t id = kNoId;
#pragma unroll
  for (int i = kHeld - 1; i >= 0; --i) id = tile.x[i] == highest ? held_id(begin, i) : id;
  return __reduce_min_sync(kAllLanes, id);
}

// What is in the warp's tile at `begin`, which is in the row, and the best of it and of tiles before. By a whole warp; all
// lanes get the results.
__device__ __forceinline__ TilePart look_at_tile(const Row& row, const RowTask& task, uint32_t begin, WarpBest& best) {
  Tile tile;
  const float own = load_tile(row, begin, tile);
  const bool invalid = __any_sync(kAllLanes, !(own < INFINITY));
  const float highest = invalid ? INFINITY : from_ordered(__reduce_max_sync(kAllLanes, ordered(own)));
  if (best.peak == 0 || highest > packed_value(best.peak)) best.peak = pack(highest, id_of(tile, begin, highest));
  TilePart part{highest, 0.0f};
  if (!task.greedy && highest > -INFINITY && !invalid && task.filter.keeps_all(row.size)) {
    const float scale = task.filter.inverse_temperature * kLog2E;
    part.mass = warp_sum(held_mass<true>(tile, -INFINITY, highest, scale));
    if (task.draws) best.winner = race_for_row<true>(row, task, tile, begin, -INFINITY, best.winner);
  }
  return part;
}

}  // namespace pearl::cuda
