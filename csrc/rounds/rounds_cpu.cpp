#include "rounds/rounds.h"

#include <algorithm>
#include <chrono>
#include <exception>

#include "cpu_kernels.h"

namespace pearl {
namespace {

constexpr int64_t kPlaceholder = -1;  // verification draws the target's own token in its place

class Clock {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace

float* Rounds::Buffer::of(int64_t count) {
  if (count > size) {
    size = 0;
    data.reset();  // before there are two
    data.reset(new float[count]);
    size = count;
  }
  return data.get();
}

Rounds::Rounds(const RoundArgs& args)
    : args_(args), batch_(args.advance.batch), starts_(batch_), emitted_(batch_), accepted_(batch_) {
  args_.advance.num_emitted = emitted_.data();
  args_.advance.num_accepted = accepted_.data();
  args_.advance.next_window = 0;
}

RoundOutcome Rounds::run(int64_t gamma, int64_t missed, const std::vector<std::vector<int64_t>>& guesses, int threads) {
  const Clock clock;
  RoundOutcome outcome;
  const bool drafts = gamma > 0 && guesses.empty();
  if (drafts) {
    try {
      draft(gamma, missed, threads);
    } catch (const std::exception& error) {
      outcome.draft_error = error.what();
      gamma = 0;
    }
  }
  outcome.drafted_s = clock.seconds();
  const AdvanceArgs& state = args_.advance;
  const std::vector<int64_t> before(state.committed, state.committed + batch_);
  for (int64_t b = 0; b < batch_; ++b) {
    if (state.finished[b]) continue;
    int64_t* head = state.tokens + b * state.tokens_stride + before[b];
    std::fill(head, head + gamma + 1, kPlaceholder);
    for (int64_t i = 0; drafts && i < gamma; ++i) {
      if (status_[i * batch_ + b] == kOk) head[i] = tokens_[i * batch_ + b];
    }
    if (!drafts && gamma > 0) std::copy(guesses[b].begin(), guesses[b].end(), head);
  }
  DecoderArgs target = args_.target;
  window(&target, gamma + 1, gamma, threads);
  target.keep = gamma + 1;
  target.head.out = target_logits_.of(batch_ * (gamma + 1) * target.head.outputs);
  outcome.begun_s = clock.seconds();
  cpu_kernels().window_decoder(target);
  outcome.verified_s = clock.seconds();
  for (int64_t b = 0; b < batch_; ++b) {
    if (!state.finished[b]) state.window[b] = static_cast<int32_t>(gamma);
  }
  advance(gamma, target.head.out, drafts, threads);
  for (int64_t b = 0; b < batch_; ++b) {
    const int64_t* row = state.tokens + b * state.tokens_stride;
    outcome.emitted.emplace_back(row + before[b], row + state.committed[b]);
  }
  outcome.accepted = accepted_;
  return outcome;
}

void Rounds::draft(int64_t gamma, int64_t missed, int threads) {
  DraftChainArgs args = args_.draft;
  window(&args.decoder, missed, 0, threads);
  const auto count = static_cast<std::size_t>(gamma * batch_);
  tokens_.resize(count);
  threshold_.resize(count);
  lse_.resize(count);
  status_.resize(count);
  args.steps = gamma;
  // A position may be drafted again in a later round; its noise must then be new.
  args.epochs = args.purpose == Purpose::kSample ? nullptr : args_.advance.committed;
  args.logits = draft_logits_.of(gamma * batch_ * args.decoder.head.outputs);
  args.tokens = tokens_.data();
  args.threshold = threshold_.data();
  args.lse = lse_.data();
  args.status = status_.data();
  draft_chain(args);
}

// The last `width` tokens of each row and of those `drafted` after its committed ones.
void Rounds::window(DecoderArgs* args, int64_t width, int64_t drafted, int threads) {
  const AdvanceArgs& state = args_.advance;
  inputs_.resize(batch_ * width);
  for (int64_t b = 0; b < batch_; ++b) {
    starts_[b] = state.committed[b] + drafted - width;
    const int64_t* from = state.tokens + b * state.tokens_stride + starts_[b];
    std::transform(from, from + width, inputs_.begin() + b * width,
                   [](int64_t token) { return std::max<int64_t>(token, 0); });
  }
  args->tokens = inputs_.data();
  args->each.seq_lens = starts_.data();
  args->each.width = width;
  args->each.threads = threads;
}

void Rounds::advance(int64_t gamma, const float* logits, bool drafted, int threads) {
  const int64_t width = gamma + 1, vocab = args_.target.head.outputs;
  AdvanceArgs args = args_.advance;
  args.width = width;
  args.target = {logits, DType::kFloat32, vocab, width * vocab, vocab};
  if (drafted && gamma > 0) {
    const int64_t outputs = args_.draft.decoder.head.outputs;
    row_threshold_.resize(batch_ * width);  // of the last row, a placeholder's, nobody asks
    row_lse_.resize(batch_ * width);
    for (int64_t b = 0; b < batch_; ++b) {
      for (int64_t i = 0; i < gamma; ++i) {
        row_threshold_[b * width + i] = threshold_[i * batch_ + b];
        row_lse_[b * width + i] = lse_[i * batch_ + b];
      }
    }
    args.draft.logits = {draft_logits_.data.get(), DType::kFloat32, args_.draft.vocab, outputs, batch_ * outputs};
    args.draft.threshold = row_threshold_.data();
    args.draft.lse = row_lse_.data();
    args.draft.d2t = args_.draft.d2t;
  } else {
    args.draft = {};
  }
  cpu_kernels().advance(args, threads);
}

}  // namespace pearl
