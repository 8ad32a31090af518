#pragma once

#include <cstdint>

#include "common/types.h"
#include "window_decoder/window_decoder.h"

namespace pearl {

// Steps of a draft: the decoder reads a window, one token is drawn from its last row and is the next window, and so on.
// All arrays of (steps, batch, ...) are contiguous.
struct DraftChainArgs {
  // Its tokens, starts, lengths and width are those of the first window; keep and head.out are of no meaning.
  DecoderArgs decoder;
  int64_t steps;
  int64_t vocab;  // columns of a row that are drawn from, the first ones
  SamplingParams params;
  const int64_t* epochs;  // (batch,), or null
  Purpose purpose;
  const int64_t* d2t;  // (vocab,), the id of each column; null: the column itself
  // Induction, as in induction.h. Tokens are written to the text where they stand.
  int64_t* text;  // (batch, length); null: none
  int64_t text_stride, text_length;
  const float* strengths;  // (most,)
  int64_t most;

  float* logits;    // (steps, batch, outputs)
  int64_t* tokens;  // (steps, batch)
  float *threshold, *lse;
  int32_t* status;
};

void draft_chain(const DraftChainArgs& args);

}  // namespace pearl
