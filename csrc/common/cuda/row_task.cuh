#pragma once

#include "common/cuda/race.cuh"

// What is wanted of a row, what a block finds in its slice of it, and what is known once all slices are in.
namespace pearl::cuda {

constexpr uint32_t kNoId = 0xffffffffu;
constexpr float kLog2E = 1.44269504f;

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
  return {temperature, temperature == 0.0f ? 1.0f : 1.0f / temperature, params.top_k[batch], params.top_p[batch],
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

// What is in a tile or a slice of a row.
struct RowPart {
  uint64_t peak;    // the highest logit and its lowest id, packed
  uint64_t winner;  // of the draw; 0 where a filter decides later who takes part
  float mass;       // sum of exp((logit - highest of the part) / temperature)
  uint32_t invalid;
};

// What blocks leave of a row for the one that comes last.
struct RowScratch {
  RowPart* parts;  // (slices, kWarps)
  float* peaks;    // (slices, kWarps): the highest logit of each tile, where a filter is to be decided
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
  const uint32_t mask = contenders(tile, begin, task.noise, best, [&](float x) {
    return kAll || x >= threshold ? x * inverse_temperature : -INFINITY;
  });
  return race(begin, mask, best, [&](uint32_t id) {
    if (id == task.excluded) return -INFINITY;
    return fmaf(row.at(id), inverse_temperature, gumbel(task.noise, id));
  });
}

// What is in the warp's tile at `begin`, which is in the row. By a whole warp; all lanes get the result. peaks: of the
// row's tiles
__device__ __forceinline__ RowPart look_at_tile(const Row& row, const RowTask& task, uint32_t begin, float* peaks) {
  RowPart part{0, 0, 0.0f, 0};
  Tile tile;
  load_tile(row, begin, tile);
  float highest = -INFINITY;
  uint32_t at = held_id(begin, 0);
  bool invalid = false;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    invalid |= !(tile.x[i] < INFINITY);  // NaN or +inf
    if (tile.x[i] > highest) {
      highest = tile.x[i];
      at = held_id(begin, i);
    }
  }
  const uint32_t word = ordered(highest);
  const uint32_t top = __reduce_max_sync(kAllLanes, word);
  const uint32_t id = __reduce_min_sync(kAllLanes, word == top ? at : kNoId);
  highest = from_ordered(top);
  part.peak = pack(highest, id);
  part.invalid = __any_sync(kAllLanes, invalid);
  if (task.filters(row.size) && lane_index() == 0) peaks[begin / kTile] = highest;
  if (!task.greedy && highest > -INFINITY && !part.invalid && task.filter.keeps_all(row.size)) {
    const float scale = task.filter.inverse_temperature * kLog2E;
    part.mass = warp_sum(held_mass<true>(tile, -INFINITY, highest, scale));
    if (task.draws) {
      uint64_t best = 0;
      if (id != task.excluded) {
        best = pack(fmaf(highest, task.filter.inverse_temperature, gumbel(task.noise, id)), id);
      }
      part.winner = warp_max(race_for_row<true>(row, task, tile, begin, -INFINITY, best));
    }
  }
  return part;
}

}  // namespace pearl::cuda
