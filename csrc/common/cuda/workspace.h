#pragma once

#include <cstdint>

namespace pearl {

// Where kernels are queued, and memory for what their blocks tell each other. One at a time uses a workspace: that is
// so for work on one stream.
struct CudaQueue {
  int device;
  void* stream;
  uint32_t* counters;  // at least counters_bytes of zeros; they are zeros again when the work is done
  void* scratch;       // at least scratch_bytes of anything, 16-byte aligned
};

// What an operation on (batch, width, vocab) logits needs.
struct CudaWorkspaceSize {
  int64_t counters_bytes, scratch_bytes;
};
CudaWorkspaceSize cuda_workspace_size(int64_t batch, int64_t width, int64_t vocab);

}  // namespace pearl
