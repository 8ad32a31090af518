#pragma once

#include "advance/advance.h"
#include "verify/verify.h"

namespace pearl {

// Chains to judge: given ones, or those of decoding states that are to be advanced by the outcome.
struct ChainJob {
  VerifyArgs args;    // draft_tokens, chain_len, positions and outputs only if not `advances`
  AdvanceArgs state;  // the state and its outputs only if `advances`
  bool advances;
};

}  // namespace pearl
