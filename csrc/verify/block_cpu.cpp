#include <cmath>

#include "verify/chain.h"

namespace pearl::PEARL_SIMD {
namespace {

// The mass that the draft leaves over at token i once the tokens before it hold with weight `weight`.
double left_over(const Chain& chain, int32_t i, const RowStats& stats, Drafted& drafted, double weight) {
  if (chain.has_draft_probs()) return residual_mass(chain.target_row(i), stats, drafted.row, weight);
  return weight * std::fmax(0.0, 1.0 - chain.target_prob(i, stats));
}

// A token that the target cannot emit is never mended by what follows: 0 stays 0.
double next_weight(double weight, double target_prob, double draft_prob) {
  if (weight == 0 || target_prob == 0) return 0.0;
  return std::fmin(1.0, weight * target_prob / draft_prob);
}

// The rows of one chain's tokens: those before the first that cannot be judged.
class Block {
 public:
  explicit Block(const Chain& chain)
      : chain_(chain),
        drafted_(static_cast<Drafted*>(scratch(Scratch::kChain, sizeof(Drafted) * static_cast<size_t>(chain.length)))) {
    for (; length_ < chain.length; ++length_) {
      drafted_[length_] = chain.drafted(length_);
      status_ |= drafted_[length_].status;
      if (drafted_[length_].refused) break;
    }
  }

  Verdict verdict() {
    for (int32_t i = 0; i < length_; ++i) {
      if (!judge(i)) return {0, 0, status_};
    }
    if (accepted_ == chain_.length) return {accepted_, kNoToken, status_};
    return draw_next();
  }

 private:
  // False if the row is no distribution.
  bool judge(int32_t i) {
    const RowStats stats = row_stats(chain_.target_row(i), chain_.filter, Need::kProbabilities);
    status_ |= stats.status;
    if (stats.status != kOk) return false;
    if (i > 0) settle(i - 1, pass_probability(i, stats));
    weight_ = next_weight(weight_, chain_.target_prob(i, stats), drafted_[i].prob);
    if (i + 1 == length_) settle(i, weight_);
    return true;
  }

  // That of the tokens before token i, whose target row has `stats`.
  double pass_probability(int32_t i, const RowStats& stats) {
    if (weight_ == 1.0) return 1.0;
    const double excess = left_over(chain_, i, stats, drafted_[i], weight_);
    return excess / (excess + 1.0 - weight_);
  }

  void settle(int32_t i, double probability) {
    if (!(chain_.accept_draw(i) <= probability)) return;
    accepted_ = i + 1;
    accepted_weight_ = weight_;
  }

  Verdict draw_next() {
    const bool cut = accepted_ == length_;
    const Row target = chain_.target_row(accepted_);
    const RowStats stats = row_stats(target, chain_.filter, cut ? Need::kThreshold : Need::kProbabilities);
    if (stats.status != kOk) return {0, 0, status_ | stats.status};
    if (cut) return {accepted_, draw(target, stats, chain_.noise(Purpose::kSample, accepted_)), status_};
    const int64_t token = draw_corrected(chain_, accepted_, target, stats, drafted_[accepted_].row, accepted_weight_);
    return {accepted_, token, status_};
  }

  const Chain& chain_;
  Drafted* drafted_;
  int32_t length_ = 0;
  int32_t status_ = kOk;
  int32_t accepted_ = 0;
  double weight_ = 1.0, accepted_weight_ = 1.0;  // of all tokens judged so far; of the accepted ones
};

}  // namespace

// Sun et al. 2024, Algorithm 2, for a chain with no target row past its last token.
Verdict verify_block(const Chain& chain) { return Block(chain).verdict(); }

}  // namespace pearl::PEARL_SIMD
