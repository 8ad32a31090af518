#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "common/cuda/queue.h"

// Memory for what the blocks of an operation tell each other. It is taken once and kept: an operation that ran before
// on its stream, with sizes no smaller, asks the driver for nothing, and a captured graph holds kernels alone.
namespace pearl::cuda {

struct Memory {
  int device = 0;
  uint32_t* counters = nullptr;  // zeros between operations
  void* scratch = nullptr;       // anything, 256-byte aligned
  int64_t counters_bytes = 0, scratch_bytes = 0;
};

// The memory of a stream while a thread queues one operation's kernels there: threads that share a stream take turns, or
// their kernels would mix. Each capture has memory of its own on each of its streams, as a graph may be launched on any
// stream beside other work. That memory goes to later captures once the graph, and all that was instantiated of it, is
// destroyed. Two executable graphs of one capture must not run at the same time.
class MemoryHold {
 public:
  // The current device is the queue's. Throws std::bad_alloc where it has no memory left.
  MemoryHold(const CudaQueue& queue, int64_t counters_bytes, int64_t scratch_bytes);

  // Null, or what the CUDA runtime says went wrong; `memory` is then of no use.
  const char* error() const { return error_; }
  const Memory& memory() const { return memory_; }

 private:
  const char* error_ = nullptr;
  Memory memory_;
  std::shared_ptr<void> slot_;  // has the mutex of turn_
  std::unique_lock<std::mutex> turn_;
};

// All memory that is in use or waits for a capture, for tests.
std::vector<Memory> memory_in_use();

}  // namespace pearl::cuda
