#include "common/simd/simd.h"
#include "cpu_level.h"

namespace pearl::PEARL_SIMD {

float read_bytes(const void* data, std::size_t bytes) {
  constexpr std::size_t kStep = 8 * sizeof(Float);
  const char* p = static_cast<const char*>(data);
  Int sum[8] = {};
  for (std::size_t i = 0; i + kStep <= bytes; i += kStep) {
    for (int v = 0; v < 8; ++v) {
      Int words;
      std::memcpy(&words, p + i + v * sizeof words, sizeof words);
      sum[v] ^= words;
    }
  }
  const Int all = ((sum[0] ^ sum[1]) ^ (sum[2] ^ sum[3])) ^ ((sum[4] ^ sum[5]) ^ (sum[6] ^ sum[7]));
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += static_cast<float>(all[lane]);
  return total;
}

}  // namespace pearl::PEARL_SIMD
