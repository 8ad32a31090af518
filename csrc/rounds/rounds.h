#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "advance/advance.h"
#include "draft_chain/draft_chain.h"
#include "window_decoder/window_decoder.h"

namespace pearl {

// What is the same in all rounds of a batch.
struct RoundArgs {
  AdvanceArgs advance;   // but for logits, the draft's rows, width and outputs
  DecoderArgs target;    // but for tokens, lengths, width, keep and head.out
  DraftChainArgs draft;  // likewise, and but for steps, epochs and outputs; without a draft of no meaning
};

struct RoundOutcome {
  std::vector<std::vector<int64_t>> emitted;  // the tokens that each row committed
  std::vector<int32_t> accepted;              // how many of them were drafted
  std::string draft_error;                    // of a draft that failed: nothing was drafted then
  // Seconds since the call: the end of the draft, begin and end of the target's forward.
  double drafted_s = 0, begun_s = 0, verified_s = 0;
};

// Rounds of a batch in which nothing waits to be verified: draft, verify, commit.
class Rounds {
 public:
  explicit Rounds(const RoundArgs& args);

  // gamma:   tokens to draft of each row, or none
  // missed:  as many last tokens of each row the draft has not read
  // guesses: gamma tokens or none of each row, drafted by someone else; empty: by the draft
  RoundOutcome run(int64_t gamma, int64_t missed, const std::vector<std::vector<int64_t>>& guesses, int threads);

 private:
  // Uninitialised, and only ever larger.
  struct Buffer {
    float* of(int64_t count);
    std::unique_ptr<float[]> data;
    int64_t size = 0;
  };

  void draft(int64_t gamma, int64_t missed, int threads);
  void window(DecoderArgs* args, int64_t width, int64_t drafted, int threads);
  void advance(int64_t gamma, const float* logits, bool drafted, int threads);

  RoundArgs args_;
  int64_t batch_;
  std::vector<int64_t> inputs_, starts_;
  std::vector<int64_t> tokens_;                 // drafted, (gamma, batch)
  std::vector<float> threshold_, lse_;          // likewise
  std::vector<int32_t> status_;                 // likewise
  std::vector<float> row_threshold_, row_lse_;  // the same by rows, (batch, gamma + 1)
  std::vector<int32_t> emitted_, accepted_;
  Buffer draft_logits_, target_logits_;  // (gamma, batch, outputs), (batch, gamma + 1, outputs)
};

}  // namespace pearl
