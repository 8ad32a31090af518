#include "verify/chain.h"

#include <cmath>

namespace pearl::PEARL_SIMD {
namespace {

RowStats draft_stats(const Chain& chain, const Row& row, int32_t i) {
  if (!chain.draft.lse) return row_stats(row, chain.filter, Need::kProbabilities, Scratch::kDraftBlockMaxima);
  const int64_t at = chain.batch * chain.width + i;
  RowStats stats;
  stats.inverse_temperature = chain.filter.inverse_temperature;
  stats.threshold = chain.draft.threshold[at];
  stats.lse = chain.draft.lse[at];
  stats.status = std::isfinite(stats.lse) ? kOk : kDraftInvalid;
  return stats;
}

// `greedy` and `coupled`: accept while the drafted token is the target's own.
Verdict verify_equality(const Chain& chain, bool greedy) {
  for (int32_t i = 0; i < chain.length; ++i) {
    const Row target = chain.target_row(i);
    const RowStats stats = row_stats(target, chain.filter, greedy ? Need::kMaximum : Need::kThreshold);
    if (stats.status != kOk) return {i, 0, stats.status};
    const int64_t own = greedy ? argmax(target, stats) : draw(target, stats, chain.noise(Purpose::kSample, i));
    if (own != chain.tokens[i]) return {i, own, kOk};
  }
  return {chain.length, kNoToken, kOk};
}

// Leviathan et al. 2023, Algorithm 1, for given drafted tokens.
Verdict verify_token(const Chain& chain) {
  for (int32_t i = 0; i < chain.length; ++i) {
    const Drafted drafted = chain.drafted(i);
    const Row target = chain.target_row(i);
    const RowStats stats = row_stats(target, chain.filter, drafted.refused ? Need::kThreshold : Need::kProbabilities);
    if (stats.status != kOk) return {i, 0, drafted.status | stats.status};
    if (drafted.refused) return {i, draw(target, stats, chain.noise(Purpose::kSample, i)), drafted.status};
    if (chain.accept_draw(i) * drafted.prob < chain.target_prob(i, stats)) continue;
    return {i, draw_corrected(chain, i, target, stats, drafted.row, 1.0), kOk};
  }
  return {chain.length, kNoToken, kOk};
}

}  // namespace

Drafted Chain::drafted(int32_t i) const {
  const int64_t token = tokens[i];
  Drafted result{false, kOk, 1.0, DraftRow({}, nullptr, {})};
  if (token < 0 || token >= target.vocab) {
    result.refused = true;
  } else if (has_draft_probs()) {
    const Row row = row_of(draft.logits, batch, i);
    result.row = DraftRow(row, draft.d2t, draft_stats(*this, row, i));
    const RowStats& stats = result.row.stats();
    const float logit = result.row.logit(token);
    result.refused = stats.status != kOk || std::isnan(logit) || logit == kInfinity;
    result.status = result.refused ? kDraftInvalid : kOk;
    result.prob = probability(logit, stats);
  }
  return result;
}

int64_t draw_corrected(const Chain& chain, int32_t i, const Row& target, const RowStats& stats, const DraftRow& draft,
                       double weight) {
  const NoiseKey key = chain.noise(Purpose::kResidual, i);
  const int64_t token = chain.has_draft_probs() ? draw_residual(target, stats, draft, weight, key)
                                                : draw(target, stats, key, chain.tokens[i]);
  return token != kNoToken ? token : draw(target, stats, key);
}

Verdict verify_chain(const Chain& chain) {
  if (chain.rule == Rule::kGreedy || chain.filter.greedy()) return verify_equality(chain, true);
  switch (chain.rule) {
    case Rule::kBlock: return verify_block(chain);
    case Rule::kCoupled: return verify_equality(chain, false);
    default: return verify_token(chain);
  }
}

}  // namespace pearl::PEARL_SIMD
