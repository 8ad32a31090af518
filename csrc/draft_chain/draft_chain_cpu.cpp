#include "draft_chain/draft_chain.h"

#include <vector>

#include "cpu_kernels.h"
#include "induction/induction.h"

namespace pearl {
namespace {

// Writes a window where it stands in the texts.
void remember(const DraftChainArgs& args, const DecoderArgs& window) {
  const LayerArgs& each = window.each;
  for (int64_t b = 0; b < each.batch; ++b) {
    for (int64_t i = 0; i < each.width; ++i) {
      const int64_t position = each.seq_lens[b] + i;
      if (position < args.text_length) args.text[b * args.text_stride + position] = window.tokens[b * each.width + i];
    }
  }
}

}  // namespace

void draft_chain(const DraftChainArgs& args) {
  const int64_t batch = args.decoder.each.batch, outputs = args.decoder.head.outputs;
  DecoderArgs window = args.decoder;
  window.keep = 1;
  const int64_t* first = window.each.seq_lens;
  std::vector<int64_t> starts(first, first + batch), heads(batch);
  window.each.seq_lens = starts.data();
  for (int64_t step = 0; step < args.steps; ++step) {
    for (int64_t b = 0; b < batch; ++b) {
      heads[b] = starts[b] + (window.lengths ? window.lengths[b] : window.each.width);
    }
    window.head.out = args.logits + step * batch * outputs;
    cpu_kernels().window_decoder(window);
    const LogitsView logits{window.head.out, DType::kFloat32, args.vocab, outputs, outputs};
    if (args.text) {
      remember(args, window);
      induce({logits, args.d2t, args.text, args.text_stride, batch, args.text_length, heads.data(), args.strengths,
              args.most});
    }
    int64_t* tokens = args.tokens + step * batch;
    cpu_kernels().sample({logits, args.params, heads.data(), args.epochs, args.purpose, batch, tokens,
                          args.threshold + step * batch, args.lse + step * batch, args.status + step * batch},
                         window.each.threads);
    if (args.d2t) {
      for (int64_t b = 0; b < batch; ++b) tokens[b] = args.d2t[tokens[b]];
    }
    window.tokens = tokens;
    window.each.width = 1;
    window.lengths = nullptr;
    starts = heads;
  }
}

}  // namespace pearl
