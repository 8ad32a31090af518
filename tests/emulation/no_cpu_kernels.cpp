#include "common/parallel.h"
#include "cpu_kernels.h"
#include "draft_chain/draft_chain.h"
#include "induction/induction.h"

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

void release_threads() {}

}  // namespace pearl
