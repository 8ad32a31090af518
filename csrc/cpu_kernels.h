#pragma once

#include <cstddef>
#include <vector>

#include "advance/advance.h"
#include "sample/sample.h"
#include "verify/verify.h"
#include "window_attention/window_attention.h"
#include "window_decoder/window_decoder.h"
#include "window_layer/window_layer.h"
#include "window_linear/window_linear.h"
#include "window_norm/window_norm.h"

namespace pearl {

// The CPU kernels as compiled for one SIMD level.
struct CpuKernels {
  const char* level;
  void (*sample)(const SampleArgs&, int threads);
  void (*verify)(const VerifyArgs&, int threads);
  void (*advance)(const AdvanceArgs&, int threads);
  void (*window_linear)(const LinearArgs&);
  void (*window_attention)(const AttentionArgs&);
  void (*window_norm)(const NormArgs&);
  void (*window_layer)(const LayerArgs&);
  void (*window_decoder)(const DecoderArgs&);
  float (*read_bytes)(const void*, std::size_t);
};

// Those compiled into this binary, best first.
const std::vector<CpuKernels>& compiled_kernels();

// The best this processor runs, or the one that the environment variable PEARL_SIMD names. Chosen once. Throws
// std::runtime_error if PEARL_SIMD names one that is not compiled in or does not run here.
const CpuKernels& cpu_kernels();

}  // namespace pearl
