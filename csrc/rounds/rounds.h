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

// What drafted tokens were drawn from, slot by slot: (slots, batch, outputs), and (slots, batch) their statistics.
struct DraftRows {
  float* logits = nullptr;  // null: verification asks for none
  float* threshold = nullptr;
  float* lse = nullptr;
};

// Rounds of a batch: draft, verify, commit.
class Rounds {
 public:
  explicit Rounds(const RoundArgs& args);

  // A round before which nothing waits to be verified.
  // gamma:   tokens to draft of each row, or none
  // missed:  as many last tokens of each row the draft has not read
  // guesses: gamma tokens or none of each row, drafted by someone else; empty: by the draft
  RoundOutcome run(int64_t gamma, int64_t missed, const std::vector<std::vector<int64_t>>& guesses, int threads);

  // The parts of a round of PEARL. The first two may run at once, on threads of their own.
  // Drafts gamma tokens past each row's window; slot i of `rows` becomes what the i-th was drawn from.
  void draft(int64_t gamma, int64_t missed, const DraftRows& rows, int threads);
  // The target's logits of the windows, and of a token past each.
  void read_windows(int threads);
  // Verifies windows with the first of the gamma tokens past each; the others are the next windows.
  // gamma: as it was drafted, or 0: nothing was
  // chain: of the windows' tokens, from slot 1 on; that of the first token is put behind them
  RoundOutcome commit(int64_t gamma, const DraftRows& drafted, const DraftRows& chain, int threads);

 private:
  // Uninitialised, and only ever larger.
  struct Buffer {
    float* of(int64_t count);
    std::unique_ptr<float[]> data;
    int64_t size = 0;
  };

  // What a model reads.
  struct Inputs {
    std::vector<int64_t> starts, tokens;  // (batch,), (batch, width)
  };

  void window(DecoderArgs* args, Inputs* inputs, int64_t width, int threads);
  void read(int64_t width, int threads);
  void put_drafted(int64_t b, int64_t gamma, int64_t* head) const;
  RoundOutcome advance(const DraftRows& chain, int64_t drafted, int64_t next_window, int threads);

  RoundArgs args_;
  int64_t batch_;
  Inputs of_draft_, of_target_;
  std::vector<int64_t> tokens_;                 // drafted, (gamma, batch)
  std::vector<float> threshold_, lse_;          // likewise
  std::vector<int32_t> status_;                 // likewise
  std::vector<float> row_threshold_, row_lse_;  // of a chain by rows, (batch, width)
  std::vector<int32_t> emitted_, accepted_;
  int64_t width_ = 0;                    // of the target's window
  Buffer draft_logits_, target_logits_;  // (gamma, batch, outputs), (batch, width, outputs)
};

}  // namespace pearl
