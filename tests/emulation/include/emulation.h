#pragma once

#include <cstdint>
#include <functional>

// What the stand-ins for CUDA's headers ask of emulation.cpp, which runs blocks on the CPU.
namespace emulation {

// What threads do together. All of them must come with the same operation.
enum class Op : unsigned char {
  kSyncthreads,
  kSyncthreadsOr,
  kSyncthreadsAnd,
  kSyncthreadsCount,
  kSyncwarp,
  kShfl,
  kShflXor,
  kShflUp,
  kShflDown,
  kBallot,
  kAny,
  kAll,
  kReduceAdd,
  kReduceMin,
  kReduceMax,
  kCount,
};

// A place in the kernel's source, to be told where threads stand still.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// Waits for all threads of the block; how many of them came with a vote.
unsigned meet_block(Op op, bool vote, Site site);

// Waits for all lanes of the mask. Of shuffles: the bits that lane `source` came with; of votes: a bit for each lane
// whose bits were not zero; of reductions: the result.
uint64_t meet_warp(Op op, unsigned mask, uint64_t bits, unsigned source, Site site);

// A place where another thread of the block may go on instead. Does nothing most times.
void maybe_yield();

struct Grid {
  unsigned blocks, threads;  // threads of each block
  const char* kernel;
};

// Runs body once for each thread of the grid. False where that went wrong; last_problem() says how.
bool run(const Grid& grid, const std::function<void()>& body);
const char* last_problem();

}  // namespace emulation
