#pragma once

#include "common/cuda/held.cuh"

// The logit that top_k, top_p and min_p let through, found by one block for a whole row.
namespace pearl::cuda {

constexpr int kBins = 1024;
constexpr float kBinsPerNat = 32.0f;

// Adds up `weights` of bins until `wanted` is reached: that bin, and the sum of those before it. If it never is, the
// last bin. All threads of the block call it.
struct Found {
  int bin;
  uint64_t before;
};
__device__ __forceinline__ Found find_bin(const unsigned long long* weights, uint64_t wanted) {
  constexpr int kOwn = kBins / kThreads > 0 ? kBins / kThreads : 1;
  __shared__ uint64_t of_warp[kWarps];
  __shared__ Found found;
  const int first = static_cast<int>(threadIdx.x) * kOwn;
  uint64_t own = 0;
  for (int i = 0; i < kOwn && first + i < kBins; ++i) own += weights[first + i];
  uint64_t through = own;  // sum over this warp's lanes up to this one
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const uint64_t below = __shfl_up_sync(kAllLanes, static_cast<unsigned long long>(through), offset);
    if (lane_index() >= offset) through += below;
  }
  if (threadIdx.x == 0) found = {kBins - 1, 0};
  if (lane_index() == kWarp - 1) of_warp[warp_index()] = through;
  __syncthreads();
  uint64_t before = through - own;
  for (int w = 0; w < warp_index(); ++w) before += of_warp[w];
  if (before < wanted && wanted <= before + own) {
    int bin = first;
    while (before + weights[bin] < wanted) before += weights[bin++];
    found = {bin, before};
  }
  __syncthreads();
  return found;
}

// What a threshold is to let through: so many logits, or such a share of their mass.
struct Quota {
  bool by_mass;
  uint64_t count;
  double share;
  float highest, scale;  // of the row; the weight of x is exp2((x - highest) * scale)

  // An integer, so that sums do not depend on the order.
  __device__ __forceinline__ unsigned long long weight(float x) const {
    return by_mass ? static_cast<unsigned long long>(exp2_of((x - highest) * scale) * 0x1p40f) : 1;
  }
  __device__ __forceinline__ uint64_t wanted(uint64_t total) const {
    if (!by_mass) return count;
    const uint64_t wanted = static_cast<uint64_t>(ceil(share * static_cast<double>(total)));
    return wanted > 0 ? wanted : uint64_t{1};
  }
};

// The largest value t with weight{v >= t} >= wanted(total weight), over logits at or above `floor`; -inf if there is
// none. `held` has all of the row that may be at or above t, and `rest` is the weight of what it has not; or it is null,
// and the row is walked. `store` may then be written to.
//
// The first histogram is linear in the logit, which spreads out what models give; the bin it finds is then divided by
// the float's own order, until one value is left. A bin that fits is taken out of the row for that.
__device__ __forceinline__ float select_threshold(const Row& row, const TilePart* parts, const Held* held, Held& store,
                                                  uint64_t rest, float floor, const Filter& filter,
                                                  const Quota& quota) {
  __shared__ unsigned long long bins[kBins];
  __shared__ unsigned long long total;
  __shared__ uint32_t lowest_word, highest_word;
  const float highest = quota.highest, bin_scale = fminf(filter.inverse_temperature * kBinsPerNat, 1e30f);
  const auto linear_bin = [&](float x) { return static_cast<int>(fminf((highest - x) * bin_scale, kBins - 1)); };
  const auto counts = [&](float x) { return x >= floor && x > -INFINITY; };
  const auto clear = [&] {
    __syncthreads();
    for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
    if (threadIdx.x == 0) total = 0, lowest_word = 0xffffffffu, highest_word = 0;
    __syncthreads();
  };

  clear();
  unsigned long long own = 0;
  for_values(row, parts, floor, held, [&](float x) {
    if (!counts(x)) return;
    const unsigned long long weight = quota.weight(x);
    atomicAdd(&bins[linear_bin(x)], weight);
    own += weight;
  });
  own = warp_sum(own);
  if (lane_index() == 0) atomicAdd(&total, own);
  __syncthreads();
  const uint64_t target = quota.wanted(total + rest);
  if (target > total) return -INFINITY;
  Found found = find_bin(bins, target);
  uint64_t left = target - found.before;

  const auto in_bin = [&](float x) { return counts(x) && linear_bin(x) == found.bin; };
  if (held == nullptr && hold_values(row, parts, floor, store, in_bin)) held = &store;
  uint32_t low = 0xffffffffu, high = 0;
  for_values(row, parts, floor, held, [&](float x) {
    if (!in_bin(x)) return;
    low = min(low, ordered(x));
    high = max(high, ordered(x));
  });
  low = __reduce_min_sync(kAllLanes, low);
  high = __reduce_max_sync(kAllLanes, high);
  if (lane_index() == 0) {
    atomicMin(&lowest_word, low);
    atomicMax(&highest_word, high);
  }
  __syncthreads();
  low = lowest_word, high = highest_word;
  while (low < high) {
    const uint32_t step = (high - low) / kBins + 1;
    clear();
    for_values(row, parts, from_ordered(low), held, [&](float x) {
      const uint32_t word = ordered(x);
      if (word >= low && word <= high) atomicAdd(&bins[(high - word) / step], quota.weight(x));
    });
    __syncthreads();
    found = find_bin(bins, left);
    left -= found.before;
    high -= static_cast<uint32_t>(found.bin) * step;
    low = high - low < step ? low : high - step + 1;
  }
  return from_ordered(high);
}

// Logits that the threshold of the row's first filter, top_k or else top_p, may not be below, to be had without looking at
// the row, the likelier first: both are -inf where there is none. The threshold is not below the last.
struct Bounds {
  float likely, sure;
};
__device__ __forceinline__ Bounds quick_bounds(const Row& row, const TilePart* parts, const Filter& filter,
                                               float highest, Held& store) {
  if (filter.limits_count(row.size)) {
    const float bound = peak_of_rank(row, parts, static_cast<uint32_t>(filter.top_k), store);
    return {bound, bound};
  }
  // All that is below weighs, were there nothing but that and the highest, less than what top_p leaves out.
  const double nats = log((1.0 - static_cast<double>(filter.top_p)) / row.size) - 0.01;
  const float sure = static_cast<float>(static_cast<double>(highest) + static_cast<double>(filter.temperature) * nats);
  // Nearly all tiles have a logit at or above this one, so that some hundreds are; they weigh enough but of flat rows.
  const uint32_t tiles = (row.size + kTile - 1) / kTile;
  return {fmaxf(sure, peak_of_rank(row, parts, tiles - tiles / 32, store)), sure};
}

// The threshold of top_k and top_p, of which there is one at least.
//
// Both are nearly always decided by few of the row's logits: those at or above a bound are taken out of it in one pass,
// which for top_k skips the tiles that are below, and the rest is done with them. Where they are too few, or do not fit,
// the next bound is tried, and at last the row is walked for each histogram.
__device__ __forceinline__ float find_quota_threshold(const Row& row, const TilePart* parts, const Filter& filter,
                                                      float highest) {
  __shared__ Held store;
  const bool limits_count = filter.limits_count(row.size);
  Quota quota{!limits_count, static_cast<uint64_t>(max(filter.top_k, 0)), filter.top_p, highest,
              filter.inverse_temperature * kLog2E};
  const Bounds bounds = quick_bounds(row, parts, filter, highest, store);
  float bound = bounds.likely;
  bool walks = false;
  const Held* held = nullptr;
  unsigned long long rest = 0;
  float threshold = -INFINITY;
  for (;;) {
    if (held == nullptr && !walks) {
      rest = 0;
      // Of a share of the whole, the whole has to be known: no tile is skipped.
      const bool fits = hold_values(row, limits_count ? parts : nullptr, bound, store, [&](float x) {
        const bool taken = x >= bound && x > -INFINITY;
        if (!taken && quota.by_mass) rest += quota.weight(x);
        return taken;
      });
      rest = block_sum(rest);
      held = fits ? &store : nullptr;
    }
    const float found = select_threshold(row, parts, held, store, held ? rest : 0, threshold, filter, quota);
    if (found == -INFINITY && held) {  // less is held than was meant to be: the bound was too high, or is of no use
      held = nullptr;
      walks = bound <= bounds.sure;
      bound = bounds.sure;
      continue;
    }
    threshold = fmaxf(threshold, found);
    if (quota.by_mass || !filter.limits_mass()) return threshold;
    quota.by_mass = true;
    rest = 0;
    walks = held == nullptr;
  }
}

// The row's threshold under a filter that does not keep all. All threads of the block call it.
__device__ __forceinline__ float find_threshold(const Row& row, const TilePart* parts, const Filter& filter,
                                                float highest) {
  float threshold = -INFINITY;
  if (filter.limits_count(row.size) || filter.limits_mass()) {
    threshold = find_quota_threshold(row, parts, filter, highest);
  }
  if (filter.min_p > 0.0f) {
    const double cut =
        static_cast<double>(highest) + static_cast<double>(filter.temperature) * log(static_cast<double>(filter.min_p));
    threshold = fmaxf(threshold, static_cast<float>(cut));
  }
  return threshold;
}

}  // namespace pearl::cuda
