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

Rounds::Rounds(const RoundArgs& args) : args_(args), batch_(args.advance.batch), emitted_(batch_), accepted_(batch_) {
  args_.advance.num_emitted = emitted_.data();
  args_.advance.num_accepted = accepted_.data();
  of_draft_.starts.resize(batch_);
  of_target_.starts.resize(batch_);
}

RoundOutcome Rounds::run(int64_t gamma, int64_t missed, const std::vector<std::vector<int64_t>>& guesses, int threads) {
  const Clock clock;
  std::string draft_error;
  const bool drafts = gamma > 0 && guesses.empty();
  if (drafts) {
    try {
      draft(gamma, missed, {}, threads);
    } catch (const std::exception& error) {
      draft_error = error.what();
      gamma = 0;
    }
  }
  const double drafted_s = clock.seconds();
  const AdvanceArgs& state = args_.advance;
  for (int64_t b = 0; b < batch_; ++b) {
    if (state.finished[b]) continue;
    int64_t* head = state.tokens + b * state.tokens_stride + state.committed[b];
    std::fill(head, head + gamma + 1, kPlaceholder);
    if (drafts) put_drafted(b, gamma, head);
    if (!drafts && gamma > 0) std::copy(guesses[b].begin(), guesses[b].end(), head);
  }
  const double begun_s = clock.seconds();
  read(gamma + 1, threads);
  const double verified_s = clock.seconds();
  for (int64_t b = 0; b < batch_; ++b) {
    if (!state.finished[b]) state.window[b] = static_cast<int32_t>(gamma);
  }
  DraftRows chain;
  if (drafts && gamma > 0) chain = {draft_logits_.data.get(), threshold_.data(), lse_.data()};
  RoundOutcome outcome = advance(chain, gamma, 0, threads);
  outcome.draft_error = draft_error;
  outcome.drafted_s = drafted_s;
  outcome.begun_s = begun_s;
  outcome.verified_s = verified_s;
  return outcome;
}

void Rounds::draft(int64_t gamma, int64_t missed, const DraftRows& rows, int threads) {
  const AdvanceArgs& state = args_.advance;
  for (int64_t b = 0; b < batch_; ++b) of_draft_.starts[b] = state.committed[b] + state.window[b] - missed;
  DraftChainArgs args = args_.draft;
  window(&args.decoder, &of_draft_, missed, threads);
  const auto count = static_cast<std::size_t>(gamma * batch_);
  tokens_.resize(count);
  threshold_.resize(count);
  lse_.resize(count);
  status_.resize(count);
  args.steps = gamma;
  // A position may be drafted again in a later round; its noise must then be new.
  args.epochs = args.purpose == Purpose::kSample ? nullptr : state.committed;
  args.logits = rows.logits ? rows.logits : draft_logits_.of(gamma * batch_ * args.decoder.head.outputs);
  args.tokens = tokens_.data();
  args.threshold = rows.logits ? rows.threshold : threshold_.data();
  args.lse = rows.logits ? rows.lse : lse_.data();
  args.status = status_.data();
  draft_chain(args);
}

void Rounds::read_windows(int threads) {
  const int32_t* window = args_.advance.window;
  read(1 + *std::max_element(window, window + batch_), threads);
}

RoundOutcome Rounds::commit(int64_t gamma, const DraftRows& drafted, const DraftRows& chain, int threads) {
  const AdvanceArgs& state = args_.advance;
  const int64_t outputs = args_.draft.decoder.head.outputs;
  for (int64_t b = 0; b < batch_; ++b) {
    if (state.finished[b]) continue;
    int64_t* head = state.tokens + b * state.tokens_stride + state.committed[b] + state.window[b];
    *head = kPlaceholder;
    put_drafted(b, gamma, head);
    if (!chain.logits || gamma == 0) continue;
    const int64_t behind = (1 + state.window[b]) * batch_ + b;
    std::copy_n(drafted.logits + b * outputs, outputs, chain.logits + behind * outputs);
    chain.threshold[behind] = drafted.threshold[b];
    chain.lse[behind] = drafted.lse[b];
  }
  DraftRows from_first;
  if (chain.logits) from_first = {chain.logits + batch_ * outputs, chain.threshold + batch_, chain.lse + batch_};
  return advance(from_first, width_, gamma > 0 ? gamma - 1 : 0, threads);
}

// `width` tokens of each row from where the inputs start.
void Rounds::window(DecoderArgs* args, Inputs* inputs, int64_t width, int threads) {
  const AdvanceArgs& state = args_.advance;
  inputs->tokens.resize(batch_ * width);
  for (int64_t b = 0; b < batch_; ++b) {
    const int64_t* from = state.tokens + b * state.tokens_stride + inputs->starts[b];
    std::transform(from, from + width, inputs->tokens.begin() + b * width,
                   [](int64_t token) { return std::max<int64_t>(token, 0); });
  }
  args->tokens = inputs->tokens.data();
  args->each.seq_lens = inputs->starts.data();
  args->each.width = width;
  args->each.threads = threads;
}

// The target's logits of `width` tokens from each row's last committed one on.
void Rounds::read(int64_t width, int threads) {
  DecoderArgs target = args_.target;
  for (int64_t b = 0; b < batch_; ++b) of_target_.starts[b] = args_.advance.committed[b] - 1;
  window(&target, &of_target_, width, threads);
  target.keep = width_ = width;
  target.head.out = target_logits_.of(batch_ * width * target.head.outputs);
  cpu_kernels().window_decoder(target);
}

void Rounds::put_drafted(int64_t b, int64_t gamma, int64_t* head) const {
  for (int64_t i = 0; i < gamma; ++i) head[i] = status_[i * batch_ + b] == kOk ? tokens_[i * batch_ + b] : kPlaceholder;
}

// Verifies what was read. drafted: slots of the chain, of which the others are placeholders
RoundOutcome Rounds::advance(const DraftRows& chain, int64_t drafted, int64_t next_window, int threads) {
  const int64_t vocab = args_.target.head.outputs;
  AdvanceArgs args = args_.advance;
  args.width = width_;
  args.next_window = static_cast<int32_t>(next_window);
  args.target = {target_logits_.data.get(), DType::kFloat32, vocab, width_ * vocab, vocab};
  args.draft = {};
  if (chain.logits) {
    const int64_t outputs = args_.draft.decoder.head.outputs;
    row_threshold_.resize(batch_ * width_);  // of a placeholder's row nobody asks
    row_lse_.resize(batch_ * width_);
    for (int64_t b = 0; b < batch_; ++b) {
      for (int64_t i = 0; i < drafted; ++i) {
        row_threshold_[b * width_ + i] = chain.threshold[i * batch_ + b];
        row_lse_[b * width_ + i] = chain.lse[i * batch_ + b];
      }
    }
    args.draft.logits = {chain.logits, DType::kFloat32, args_.draft.vocab, outputs, batch_ * outputs};
    args.draft.threshold = row_threshold_.data();
    args.draft.lse = row_lse_.data();
    args.draft.d2t = args_.draft.d2t;
  }
  const std::vector<int64_t> before(args.committed, args.committed + batch_);
  cpu_kernels().advance(args, threads);
  RoundOutcome outcome;
  for (int64_t b = 0; b < batch_; ++b) {
    const int64_t* row = args.tokens + b * args.tokens_stride;
    outcome.emitted.emplace_back(row + before[b], row + args.committed[b]);
  }
  outcome.accepted = accepted_;
  return outcome;
}

}  // namespace pearl
