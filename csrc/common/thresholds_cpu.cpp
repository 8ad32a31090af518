#include "common/thresholds.h"

#include <cfloat>

#include "common/select.h"

namespace pearl::PEARL_SIMD {
namespace {

// Below this size, bounding a row's candidates beforehand costs more than it saves.
constexpr int64_t kSmallRow = 2 * kBlock;

struct Candidates {
  float* logits;
  int64_t count;
};

float* float_scratch(Scratch slot, int64_t count) {
  return static_cast<float*>(scratch(slot, static_cast<size_t>(count) * sizeof(float)));
}

// The finite logits at or above `cut`, in order of their ids.
Candidates gather(const Row& row, const Float* block_maxima, float cut) {
  const Float bound = broadcast(cut > -FLT_MAX ? cut : -FLT_MAX);
  Candidates out{float_scratch(Scratch::kCandidates, row.size + kChunk), 0};
  for (int64_t block = 0; block < row.blocks(); ++block) {
    if (!any(greater_equal(block_maxima[block], bound))) continue;
    for (int64_t i = block * kBlock; i < end_of_block(row, block); i += kChunk) {
      const Chunk c = load_chunk(row, i);
      for (int v = 0; v < kChunkVectors; ++v) {
        out.count += compress(out.logits + out.count, c.x[v], greater_equal(c.x[v], bound));
      }
    }
  }
  return out;
}

// The maxima of a row seen as a row themselves, a sixteenth as long, whose own maxima follow them in memory. Each is
// the logit of another id, so what holds of enough of them holds of the row.
struct Coarse {
  Row row;
  Float* block_maxima;

  Coarse(const Row& fine, Float* fine_maxima)
      : row{fine_maxima, DType::kFloat32, fine.blocks() * kLanes}, block_maxima(fine_maxima + fine.blocks()) {
    sweep_maxima(row, block_maxima);
  }
};

// -inf if there are fewer than k finite logits.
float top_k_threshold(const Row& row, Float* block_maxima, int64_t k) {
  float cut = -kInfinity;
  if (row.size > kSmallRow && k <= row.blocks() * kLanes / 2) {
    const Coarse coarse(row, block_maxima);
    cut = top_k_threshold(coarse.row, coarse.block_maxima, k);
  }
  const Candidates candidates = gather(row, block_maxima, cut);
  if (candidates.count < k) return -kInfinity;
  return select_by_weight(candidates.logits, nullptr, candidates.count, static_cast<double>(k));
}

struct Masses {
  float* of;
  double sum;
};

// exp of the candidates' scaled logits, relative to the row's maximum.
Masses masses_of(const Candidates& candidates, const RowStats& stats) {
  const Row row{candidates.logits, DType::kFloat32, candidates.count};
  Masses masses{float_scratch(Scratch::kCandidateMasses, candidates.count + kChunk), 0};
  for (int64_t i = 0; i < row.size; i += kChunk) {
    const Chunk c = load_chunk(row, i);
    Float chunk_sum{};
    for (int v = 0; v < kChunkVectors; ++v) {
      const Float all = exp(fma(c.x[v], broadcast(stats.inverse_temperature), broadcast(-stats.shift)));
      const Float mass = zero_unless(greater(c.x[v], broadcast(-kInfinity)), all);
      store_float32(masses.of + i + v * kLanes, mass);
      chunk_sum += mass;
    }
    masses.sum += reduce_add(chunk_sum);
  }
  return masses;
}

// Raises `cut`, a logit below which no id is wanted, to one that its ids' own maxima show to be low enough: the ids at
// or above it have at least `target` of mass.
float raise_cut(const Row& row, Float* block_maxima, const RowStats& stats, float cut, double target) {
  if (row.size <= kSmallRow) return cut;
  const Coarse coarse(row, block_maxima);
  cut = raise_cut(coarse.row, coarse.block_maxima, stats, cut, target);
  const Candidates candidates = gather(coarse.row, coarse.block_maxima, cut);
  const Masses masses = masses_of(candidates, stats);
  if (masses.sum < target) return cut;
  return select_by_weight(candidates.logits, masses.of, candidates.count, target);
}

// A logit below which no id is in the nucleus: all such ids together have less than 1 - top_p of the mass.
float lower_bound_of_nucleus(const Row& row, const RowStats& stats, double log_mass, double top_p) {
  const double scaled = log_mass + std::log((1.0 - top_p) / static_cast<double>(row.size));
  const double logit = scaled / stats.inverse_temperature;
  return static_cast<float>(logit - 1e-6 * std::fabs(logit) - 1e-3 / stats.inverse_temperature);
}

// Of the ids at or above `cut`, which have `mass` in all.
float nucleus_threshold(const Row& row, const RowStats& stats, float cut, double top_p, double mass) {
  cut = raise_cut(row, stats.block_maxima, stats, cut, top_p * mass);
  const Candidates candidates = gather(row, stats.block_maxima, cut);
  const Masses masses = masses_of(candidates, stats);
  return select_by_weight(candidates.logits, masses.of, candidates.count, top_p * mass);
}

float top_p_threshold(const Row& row, const RowStats& stats, double top_p, double log_mass) {
  const float cut = lower_bound_of_nucleus(row, stats, log_mass, top_p);
  return nucleus_threshold(row, stats, cut, top_p, std::exp(log_mass - stats.shift));
}

float top_p_threshold_above(const Row& row, const RowStats& stats, double top_p, float cut) {
  const double mass = sweep_mass_above(row, stats.block_maxima, cut, stats.inverse_temperature, stats.shift);
  return nucleus_threshold(row, stats, cut, top_p, mass);
}

float min_p_threshold(const Filter& filter, const RowStats& stats) {
  const double drop = static_cast<double>(filter.temperature) * std::log(static_cast<double>(filter.min_p));
  return static_cast<float>(static_cast<double>(stats.max_logit) + drop);
}

}  // namespace

float threshold_of(const Row& row, const Filter& filter, const RowStats& stats, double log_mass) {
  float threshold = -kInfinity;
  if (filter.limits_count(row.size)) {
    threshold = top_k_threshold(row, stats.block_maxima, filter.top_k);
    if (filter.limits_mass()) threshold = top_p_threshold_above(row, stats, filter.top_p, threshold);
  } else if (filter.limits_mass()) {
    threshold = top_p_threshold(row, stats, filter.top_p, log_mass);
  }
  if (filter.min_p > 0.0f) {
    const float bound = min_p_threshold(filter, stats);
    threshold = bound > threshold ? bound : threshold;
  }
  return threshold;
}

}  // namespace pearl::PEARL_SIMD
