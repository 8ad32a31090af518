#pragma once

#include <cstdint>

#include "common/types.h"

namespace pearl {

// Adds a strength to the logit of the token that followed the last occurrence of each row's longest repeated end.
struct InductionArgs {
  LogitsView logits;   // (batch, 1, vocab); written to
  const int64_t* d2t;  // (vocab,), strictly increasing; null: the ids are the columns
  const int64_t* tokens;
  int64_t tokens_stride;  // between rows, in elements
  int64_t batch, capacity;
  const int64_t* lengths;  // (batch,): others than [0, capacity] are taken to the nearer end
  const float* strengths;  // (most,), of an end of one token and of more
  int64_t most;
};

void induce(const InductionArgs& args);

}  // namespace pearl
