#pragma once

#include "common/draw.h"
#include "verify/verify.h"

namespace pearl::PEARL_SIMD {

// What the draft says of one drafted token.
struct Drafted {
  bool refused;    // a placeholder, or a token the draft has no valid probability for: the chain ends before it
  int32_t status;  // kDraftInvalid in the latter case
  double prob;
  DraftRow row;
};

// One request's drafted tokens and the rows that judge them: row i decides absolute position `position + i`.
struct Chain {
  const LogitsView& target;
  const DraftSide& draft;
  Filter filter;
  Rule rule;
  int64_t batch, width;  // index of the request; rows per request
  int64_t seed, position;
  const int64_t* tokens;
  int32_t length;

  bool has_draft_probs() const { return draft.logits.data != nullptr; }
  Row target_row(int32_t i) const { return row_of(target, batch, i); }
  double target_prob(int32_t i, const RowStats& stats) const { return probability(target_row(i).at(tokens[i]), stats); }
  NoiseKey noise(Purpose purpose, int32_t i) const { return make_noise_key(seed, position + i, purpose, 0); }

  // The chain's first position goes into these draws: `block` looks at draws of tokens that are judged again next
  // round.
  double accept_draw(int32_t i) const {
    return uniform(make_noise_key(seed, position + i, Purpose::kAccept, position));
  }

  Drafted drafted(int32_t i) const;
};

struct Verdict {
  int32_t num_accepted;
  int64_t next_token;
  int32_t status;
};

Verdict verify_chain(const Chain& chain);
Verdict verify_block(const Chain& chain);

// The token in place of refused token i, from max(weight * target_probs - draft_probs, 0), or from target_probs where
// that is empty.
int64_t draw_corrected(const Chain& chain, int32_t i, const Row& target, const RowStats& stats, const DraftRow& draft,
                       double weight);

}  // namespace pearl::PEARL_SIMD
