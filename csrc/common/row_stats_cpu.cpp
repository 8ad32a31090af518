#include "common/row_stats.h"

#include <cfloat>

#include "common/select.h"

namespace pearl::PEARL_SIMD {
namespace {

float* float_scratch(Scratch slot, int64_t count) {
  return static_cast<float*>(scratch(slot, static_cast<size_t>(count) * sizeof(float)));
}

// Copies the finite logits at or above `cut`, in order of their ids, and returns how many there are.
int64_t gather(const Row& row, const Float* block_maxima, float cut, float* out) {
  const Float bound = broadcast(cut > -FLT_MAX ? cut : -FLT_MAX);
  int64_t count = 0;
  for (int64_t block = 0; block < row.blocks(); ++block) {
    if (!any(greater_equal(block_maxima[block], bound))) continue;
    const int64_t end = row.size < (block + 1) * kBlock ? row.size : (block + 1) * kBlock;
    for (int64_t i = block * kBlock; i < end; i += kChunk) {
      const Chunk c = load_chunk(row, i);
      for (int v = 0; v < kChunkVectors; ++v) {
        for (uint32_t bits = to_bits(greater_equal(c.x[v], bound)); bits != 0; bits &= bits - 1) {
          out[count++] = row.at(i + v * kLanes + __builtin_ctz(bits));
        }
      }
    }
  }
  return count;
}

// A logit that at least `k` ids reach: the k-th largest of the maxima of disjoint sets of ids.
float lower_bound_of_top_k(const Row& row, const Float* block_maxima, int64_t k) {
  const int64_t count = row.blocks() * kLanes;
  if (k > count / 2) return -kInfinity;
  float* maxima = float_scratch(Scratch::kCandidates, count);
  const float* all = reinterpret_cast<const float*>(block_maxima);
  int64_t finite = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (all[i] > -kInfinity) maxima[finite++] = all[i];
  }
  if (finite < k) return -kInfinity;
  return select_by_weight(maxima, nullptr, finite, static_cast<double>(k));
}

float top_k_threshold(const Row& row, const Float* block_maxima, int64_t k) {
  const float cut = lower_bound_of_top_k(row, block_maxima, k);
  float* candidates = float_scratch(Scratch::kCandidates, row.size);
  const int64_t count = gather(row, block_maxima, cut, candidates);
  if (count < k) return -kInfinity;
  return select_by_weight(candidates, nullptr, count, static_cast<double>(k));
}

// Fills masses with exp of the scaled candidates and returns their sum.
double masses_of(const float* candidates, int64_t count, const RowStats& stats, float* masses) {
  const Row row{candidates, DType::kFloat32, count};
  double sum = 0;
  for (int64_t i = 0; i < count; i += kChunk) {
    const Chunk c = load_chunk(row, i);
    Float chunk_sum = broadcast(0);
    for (int v = 0; v < kChunkVectors; ++v) {
      const Float logit = c.x[v];
      const Float mass = zero_unless(greater(logit, broadcast(-kInfinity)),
                                     exp(logit * stats.inverse_temperature - stats.shift));
      store_float32(masses + i + v * kLanes, mass);
      chunk_sum += mass;
    }
    sum += reduce_add(chunk_sum);
  }
  return sum;
}

// Below this logit no id can be in the nucleus: all such ids together have less than 1 - top_p of the mass.
float lower_bound_of_top_p(const Row& row, const RowStats& stats, double total, double top_p) {
  const double scaled = stats.shift + std::log((1.0 - top_p) * total / static_cast<double>(row.size));
  const double logit = scaled / stats.inverse_temperature;
  return static_cast<float>(logit - 1e-6 * std::fabs(logit) - 1e-3 / stats.inverse_temperature);
}

// kept: the threshold of top_k, or -inf; total: the mass of the whole row, used only if kept is -inf
float top_p_threshold(const Row& row, const RowStats& stats, double top_p, float kept, double total) {
  const float cut = kept > -kInfinity ? kept : lower_bound_of_top_p(row, stats, total, top_p);
  const int64_t padded = (row.size + kChunk - 1) / kChunk * kChunk;
  float* candidates = float_scratch(Scratch::kCandidates, padded);
  float* masses = float_scratch(Scratch::kCandidateMasses, padded);
  const int64_t count = gather(row, stats.block_maxima, cut, candidates);
  const double gathered = masses_of(candidates, count, stats, masses);
  return select_by_weight(candidates, masses, count, top_p * (kept > -kInfinity ? gathered : total));
}

// One sweep for both: each segment is read again for its mass while it is in the cache.
Maxima sweep_maxima_and_mass(const Row& row, float inverse_temperature, Float* of_block, Mass& mass) {
  Maxima maxima;
  Mask nan{};
  for (int64_t first = 0; first < row.blocks(); first += kSegmentBlocks) {
    const int64_t last = first + kSegmentBlocks < row.blocks() ? first + kSegmentBlocks : row.blocks();
    const float segment_max = sweep_maxima(row, first, last, of_block, nan);
    if (segment_max > maxima.of_row) maxima.of_row = segment_max;
    const float shift = maxima.of_row * inverse_temperature;
    if (shift > mass.shift) {
      mass.sum *= std::exp(static_cast<double>(mass.shift) - shift);
      mass.shift = shift;
    }
    if (mass.shift == -kInfinity) continue;
    const float negligible = (mass.shift - kNegligible) / inverse_temperature;
    mass.sum += sweep_mass<false>(row, first, last, of_block, negligible, inverse_temperature, mass.shift);
  }
  maxima.has_nan = any(nan);
  return maxima;
}

Maxima sweep_maxima_only(const Row& row, Float* of_block) {
  Maxima maxima;
  Mask nan{};
  maxima.of_row = sweep_maxima(row, 0, row.blocks(), of_block, nan);
  maxima.has_nan = any(nan);
  return maxima;
}

float threshold_of(const Row& row, const Filter& filter, const RowStats& stats, double total) {
  float threshold = -kInfinity;
  if (filter.top_k > 0 && filter.top_k < row.size) {
    threshold = top_k_threshold(row, stats.block_maxima, filter.top_k);
  }
  if (filter.top_p < 1.0f) threshold = top_p_threshold(row, stats, filter.top_p, threshold, total);
  if (filter.min_p > 0.0f) {
    const double min_p =
        static_cast<double>(filter.temperature) * std::log(static_cast<double>(filter.min_p));
    const float bound = static_cast<float>(static_cast<double>(stats.max_logit) + min_p);
    threshold = bound > threshold ? bound : threshold;
  }
  return threshold;
}

double kept_mass(const Row& row, const RowStats& stats) {
  return sweep_mass<true>(row, 0, row.blocks(), stats.block_maxima, stats.threshold,
                          stats.inverse_temperature, stats.shift);
}

int32_t status_of(const Maxima& maxima) {
  if (maxima.has_nan || maxima.of_row == kInfinity) return kTargetInvalid;
  return maxima.of_row == -kInfinity ? kEmptyDistribution : kOk;
}

}  // namespace

RowStats row_stats(const Row& row, const Filter& filter, Need need, Scratch slot) {
  const bool filters = need != Need::kMaximum && !filter.keeps_all(row.size);
  const bool sums_all = filters ? filter.top_p < 1.0f : need == Need::kProbabilities;
  Float* block_maxima = static_cast<Float*>(scratch(slot, static_cast<size_t>(row.blocks()) * sizeof(Float)));
  Mass mass;
  const Maxima maxima = sums_all ? sweep_maxima_and_mass(row, filter.inverse_temperature, block_maxima, mass)
                                 : sweep_maxima_only(row, block_maxima);

  RowStats stats;
  stats.status = status_of(maxima);
  stats.inverse_temperature = filter.inverse_temperature;
  stats.max_logit = maxima.of_row;
  stats.block_maxima = block_maxima;
  if (stats.status != kOk || need == Need::kMaximum) return stats;

  stats.shift = stats.max_logit * stats.inverse_temperature;
  if (std::fabs(stats.shift) == kInfinity) {  // so low a temperature leaves no probabilities to speak of
    stats.status = kTargetInvalid;
    return stats;
  }
  if (filters) stats.threshold = threshold_of(row, filter, stats, mass.sum);
  if (need == Need::kProbabilities) {
    const double sum = filters ? kept_mass(row, stats) : mass.sum;
    stats.lse = static_cast<float>(stats.shift + std::log(sum));
  }
  return stats;
}

}  // namespace pearl::PEARL_SIMD
