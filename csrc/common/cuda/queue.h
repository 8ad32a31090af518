#pragma once

#include <cstdint>

namespace pearl {

// Where kernels are queued.
struct CudaQueue {
  int device;
  void* stream;
  int multiprocessors;  // of the device
  int capability;       // its compute capability's first number
};

}  // namespace pearl
