#pragma once

#include "common/types.h"

namespace pearl {

enum class Rule : int32_t { kGreedy = 0, kToken = 1, kBlock = 2, kCoupled = 3 };

// What the draft says of its own tokens. logits.data is null for a draft without probabilities (one-hot).
struct DraftSide {
  LogitsView logits;
  const float* threshold;  // (batch, width), null: computed from the logits
  const float* lse;        // (batch, width)
  const int64_t* d2t;      // (logits.vocab,) strictly increasing target ids, null: draft ids are target ids
};

// Shapes: (batch, width) draft_tokens, (batch,) all others; contiguous.
struct VerifyArgs {
  LogitsView target;  // (batch, width, vocab)
  DraftSide draft;    // (batch, width, draft vocab)
  SamplingParams params;
  Rule rule;
  int64_t batch, width;
  const int64_t* draft_tokens;
  const int32_t* chain_len;
  const int64_t* positions;

  int32_t* num_accepted;
  int64_t* next_token;
  int32_t* status;
};

}  // namespace pearl
