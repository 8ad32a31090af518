#include "induction/induction.h"

#include <algorithm>

#include "common/half.h"

namespace pearl {
namespace {

struct Match {
  int64_t length = 0;
  int64_t token = -1;  // the one that followed
};

Match longest_match(const int64_t* tokens, int64_t length, int64_t most) {
  Match best;
  const int64_t* end = tokens + length - 1;
  for (const int64_t* place = end - 1; place >= tokens && best.length < most; --place) {
    if (*place != *end) continue;
    int64_t same = 1;
    while (same < most && place - same >= tokens && place[-same] == end[-same]) ++same;
    if (same > best.length) best = {same, place[1]};
  }
  return best;
}

// The logit's place in its row, -1 for a token that the row has none of.
int64_t column_of(const InductionArgs& args, int64_t token) {
  if (!args.d2t) return token < args.logits.vocab ? token : -1;
  const int64_t* end = args.d2t + args.logits.vocab;
  const int64_t* found = std::lower_bound(args.d2t, end, token);
  return found != end && *found == token ? found - args.d2t : -1;
}

void add(const LogitsView& logits, int64_t index, float strength) {
  void* data = const_cast<void*>(logits.data);
  if (logits.dtype == DType::kFloat32) {
    static_cast<float*>(data)[index] += strength;
    return;
  }
  uint16_t& stored = static_cast<uint16_t*>(data)[index];
  stored = logits.dtype == DType::kBFloat16 ? float_to_bfloat16(bfloat16_to_float(stored) + strength)
                                            : float_to_float16(float16_to_float(stored) + strength);
}

}  // namespace

void induce(const InductionArgs& args) {
  for (int64_t row = 0; row < args.batch; ++row) {
    const int64_t length = std::clamp<int64_t>(args.lengths[row], 0, args.capacity);
    const Match match = longest_match(args.tokens + row * args.tokens_stride, length, args.most);
    const int64_t column = match.token < 0 ? -1 : column_of(args, match.token);
    if (column >= 0) add(args.logits, row * args.logits.batch_stride + column, args.strengths[match.length - 1]);
  }
}

}  // namespace pearl
