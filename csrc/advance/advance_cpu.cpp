#include "common/parallel.h"
#include "cpu_level.h"
#include "verify/chain.h"

namespace pearl::PEARL_SIMD {
namespace {

enum Finished : int32_t { kRunning = 0, kStop = 1, kLength = 2, kError = 3 };

bool is_eos(const AdvanceArgs& args, int64_t batch, int64_t token) {
  const int64_t* ids = args.eos_ids + batch * args.eos_count;
  for (int64_t i = 0; i < args.eos_count; ++i) {
    if (ids[i] >= 0 && ids[i] == token) return true;
  }
  return false;
}

// Commits up to `end`, or less where an end-of-sequence token or max_len comes first.
void commit(const AdvanceArgs& args, int64_t batch, int64_t end) {
  const int64_t* tokens = args.tokens + batch * args.tokens_stride;
  const int64_t begin = args.committed[batch], limit = args.max_len[batch];
  const bool reaches_limit = end >= limit;
  if (reaches_limit) end = limit > begin ? limit : begin;

  int32_t finished = reaches_limit ? kLength : kRunning;
  for (int64_t i = begin; i < end; ++i) {
    if (!is_eos(args, batch, tokens[i])) continue;
    end = i + 1;
    finished = kStop;
    break;
  }
  args.committed[batch] = end;
  args.finished[batch] = finished;
  args.num_emitted[batch] = static_cast<int32_t>(end - begin);
}

void advance_row(const AdvanceArgs& args, int64_t batch) {
  int64_t* chain_tokens = args.tokens + batch * args.tokens_stride + args.committed[batch];
  const int32_t length = args.window[batch] + 1;
  const Chain chain{args.target,  args.draft, filter_of(args.params, batch), args.rule,
                    batch,        args.width, args.params.seed[batch],       args.committed[batch],
                    chain_tokens, length};
  const Verdict verdict = verify_chain(chain);
  args.state_status[batch] |= verdict.status;
  args.window[batch] = 0;
  if (verdict.status & (kTargetInvalid | kEmptyDistribution)) {
    args.finished[batch] = kError;
    return;
  }

  const bool all_accepted = verdict.num_accepted == length;
  if (!all_accepted) chain_tokens[verdict.num_accepted] = verdict.next_token;
  commit(args, batch, args.committed[batch] + verdict.num_accepted + (all_accepted ? 0 : 1));
  if (all_accepted && args.finished[batch] == kRunning) args.window[batch] = args.next_window;
  const int32_t emitted = args.num_emitted[batch];
  args.num_accepted[batch] = verdict.num_accepted < emitted ? verdict.num_accepted : emitted;
}

}  // namespace

void advance(const AdvanceArgs& args, int threads) {
  parallel_rows(args.batch, args.width * args.target.vocab, threads, [&args](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      args.num_emitted[b] = 0;
      args.num_accepted[b] = 0;
      if (args.finished[b] == kRunning) advance_row(args, b);
    }
  });
}

}  // namespace pearl::PEARL_SIMD
