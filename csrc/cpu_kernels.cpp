#include "cpu_kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu_level.h"

#define PEARL_LEVEL_TABLE(level)                                                                         \
  CpuKernels {                                                                                           \
    #level, level::sample, level::verify, level::advance, level::window_linear, level::window_attention, \
        level::window_norm, level::window_layer, level::window_decoder, level::read_bytes                \
  }

PEARL_DECLARE_LEVEL(baseline)
#ifdef PEARL_X86
PEARL_DECLARE_LEVEL(avx2)
PEARL_DECLARE_LEVEL(avx512)
#endif

namespace pearl {
namespace {

bool runs_here(const std::string& level) {
#ifdef PEARL_X86
  if (level == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (level == "avx2") {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
#endif
  return level == "baseline";
}

CpuKernels choose() {
  const char* forced = std::getenv("PEARL_SIMD");
  for (const CpuKernels& kernels : compiled_kernels()) {
    if ((!forced || kernels.level == std::string(forced)) && runs_here(kernels.level)) return kernels;
  }
  throw std::runtime_error("PEARL_SIMD=" + std::string(forced) +
                           " is not compiled in or does not run on this processor");
}

}  // namespace

const std::vector<CpuKernels>& compiled_kernels() {
  static const std::vector<CpuKernels> kernels = {
#ifdef PEARL_X86
      PEARL_LEVEL_TABLE(avx512),
      PEARL_LEVEL_TABLE(avx2),
#endif
      PEARL_LEVEL_TABLE(baseline),
  };
  return kernels;
}

const CpuKernels& cpu_kernels() {
  static const CpuKernels kernels = choose();
  return kernels;
}

}  // namespace pearl
