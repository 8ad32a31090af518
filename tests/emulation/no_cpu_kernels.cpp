#include "common/parallel.h"
#include "cpu_kernels.h"
#include "draft_chain/draft_chain.h"
#include "induction/induction.h"
#include "rounds/rounds.h"

// The emulated extension has no CPU kernels: the bindings find none here.
namespace pearl {

const std::vector<CpuKernels>& compiled_kernels() {
  static const std::vector<CpuKernels> none;
  return none;
}

const CpuKernels& cpu_kernels() {
  static const CpuKernels none{"none"};
  return none;
}

void induce(const InductionArgs&) {}

void draft_chain(const DraftChainArgs&) {}

Rounds::Rounds(const RoundArgs& args) : args_(args), batch_(0) {}

RoundOutcome Rounds::run(int64_t, int64_t, const std::vector<std::vector<int64_t>>&, int) { return {}; }

void Rounds::draft(int64_t, int64_t, const DraftRows&, int) {}

void Rounds::read_windows(int) {}

RoundOutcome Rounds::commit(int64_t, const DraftRows&, const DraftRows&, int) { return {}; }

void release_threads() {}

}  // namespace pearl
