#include "common/draw.h"
#include "common/parallel.h"
#include "cpu_level.h"

namespace pearl::PEARL_SIMD {
namespace {

struct Sampled {
  int64_t token = 0;
  float threshold = -kInfinity;
  float lse = 0.0f;
  int32_t status = kOk;
};

Sampled sample_row(const Row& row, const Filter& filter, const NoiseKey& key) {
  const RowStats stats = row_stats(row, filter, filter.greedy() ? Need::kMaximum : Need::kProbabilities);
  Sampled result;
  result.status = stats.status;
  if (stats.status != kOk) return result;
  if (filter.greedy()) {
    result.token = argmax(row, stats);
    result.threshold = stats.max_logit;
  } else {
    result.token = draw(row, stats, key);
    result.threshold = stats.threshold;
    result.lse = stats.lse;
  }
  return result;
}

}  // namespace

void sample(const SampleArgs& args, int threads) {
  parallel_rows(args.batch, args.logits.vocab, threads, [&args](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const NoiseKey key =
          make_noise_key(args.params.seed[b], args.positions[b], args.purpose, args.epochs ? args.epochs[b] : 0);
      const Sampled result = sample_row(row_of(args.logits, b, 0), filter_of(args.params, b), key);
      args.tokens[b] = result.token;
      args.threshold[b] = result.threshold;
      args.lse[b] = result.lse;
      args.status[b] = result.status;
    }
  });
}

}  // namespace pearl::PEARL_SIMD
