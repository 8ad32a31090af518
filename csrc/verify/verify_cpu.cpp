#include "common/parallel.h"
#include "cpu_level.h"
#include "verify/chain.h"

namespace pearl::PEARL_SIMD {

void verify(const VerifyArgs& args, int threads) {
  parallel_rows(args.batch, args.width * args.target.vocab, threads, [&args](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Chain chain{
          args.target,         args.draft,        filter_of(args.params, b),          args.rule,        b, args.width,
          args.params.seed[b], args.positions[b], args.draft_tokens + b * args.width, args.chain_len[b]};
      const Verdict verdict = verify_chain(chain);
      args.num_accepted[b] = verdict.num_accepted;
      args.next_token[b] = verdict.next_token;
      args.status[b] = verdict.status;
    }
  });
}

}  // namespace pearl::PEARL_SIMD
