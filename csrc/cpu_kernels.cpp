#include "cpu_kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu_level.h"

#ifdef PEARL_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
#ifdef PEARL_AMX
PEARL_DECLARE_LEVEL(amx)
#endif

namespace pearl {
namespace {

#ifdef PEARL_AMX
// Tiles are part of a process's state only where it asks for them.
bool may_use_tiles() {
  constexpr unsigned kTiles = 1u << 24, kOfBFloat16 = 1u << 22;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && edx & kTiles && edx & kOfBFloat16 &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

bool runs_here(const std::string& level) {
#ifdef PEARL_AMX
  if (level == "amx") return runs_here("avx512") && may_use_tiles();
#endif
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
  if (forced && !*forced) forced = nullptr;
  for (const CpuKernels& kernels : compiled_kernels()) {
    if ((!forced || kernels.level == std::string(forced)) && runs_here(kernels.level)) return kernels;
  }
  throw std::runtime_error("PEARL_SIMD=" + std::string(forced) +
                           " is not compiled in or does not run on this processor");
}

}  // namespace

const std::vector<CpuKernels>& compiled_kernels() {
  static const std::vector<CpuKernels> kernels = {
#ifdef PEARL_AMX
      PEARL_LEVEL_TABLE(amx),
#endif
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
