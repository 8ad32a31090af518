#pragma once

#include "verify/verify.h"

namespace pearl {

// The state is updated in place. Shapes: (batch, length) tokens, (batch, eos_count) eos_ids, (batch,) all others.
struct AdvanceArgs {
  int64_t* tokens;
  int64_t tokens_stride;  // between rows, in elements
  int64_t* committed;
  int32_t* window;
  const int64_t* max_len;
  const int64_t* eos_ids;
  int64_t eos_count;
  int32_t* finished;
  int32_t* state_status;

  LogitsView target;  // (batch, width, vocab)
  DraftSide draft;
  SamplingParams params;
  Rule rule;
  int64_t batch, width;
  int32_t next_window;

  int32_t* num_emitted;
  int32_t* num_accepted;
};

}  // namespace pearl
