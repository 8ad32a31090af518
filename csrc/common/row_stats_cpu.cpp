#include "common/row_stats.h"

#include "common/thresholds.h"

namespace pearl::PEARL_SIMD {
namespace {

int32_t status_of(const Maxima& maxima) {
  if (maxima.has_nan || maxima.of_row == kInfinity) return kTargetInvalid;
  return maxima.of_row == -kInfinity ? kEmptyDistribution : kOk;
}

// Room for the maxima of the row, and for the maxima of those, and so on.
Float* maxima_scratch(const Row& row, Scratch slot) {
  return static_cast<Float*>(scratch(slot, static_cast<size_t>(2 * row.blocks() + 8) * sizeof(Float)));
}

}  // namespace

RowStats row_stats(const Row& row, const Filter& filter, Need need, Scratch slot) {
  const bool filters = need != Need::kMaximum && !filter.keeps_all(row.size);
  const bool sums_all = filters ? filter.needs_whole_mass(row.size) : need == Need::kProbabilities;
  RowStats stats;
  stats.block_maxima = maxima_scratch(row, slot);
  Mass mass;
  const Maxima maxima = sums_all ? sweep_maxima_and_mass(row, filter.inverse_temperature, stats.block_maxima, mass)
                                 : sweep_maxima(row, stats.block_maxima);
  stats.status = status_of(maxima);
  stats.max_logit = maxima.of_row;
  if (stats.status != kOk || need == Need::kMaximum) return stats;

  stats.inverse_temperature = filter.inverse_temperature;
  stats.shift = stats.max_logit * stats.inverse_temperature;
  if (std::fabs(stats.shift) == kInfinity) {  // so low a temperature leaves no probabilities to speak of
    stats.status = kTargetInvalid;
    return stats;
  }
  double log_mass = mass.reference + std::log(mass.sum);
  if (filters) {
    stats.threshold = threshold_of(row, filter, stats, log_mass);
    if (need != Need::kProbabilities) return stats;
    const double kept =
        sweep_mass_above(row, stats.block_maxima, stats.threshold, stats.inverse_temperature, stats.shift);
    log_mass = stats.shift + std::log(kept);
  }
  stats.lse = static_cast<float>(log_mass);
  return stats;
}

}  // namespace pearl::PEARL_SIMD
