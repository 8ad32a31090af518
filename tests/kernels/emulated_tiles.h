// The instructions for tiles of bfloat16, AMX, as their manual describes them. Included before everything else, it lets
// any x86-64 processor run what is written for them.

#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define __AMX_BF16__ 1

namespace emulated {

struct Tile {
  int rows, row_bytes;
  unsigned char bytes[16][64];
};
inline thread_local Tile tiles[8];

inline void load_config(const void* config) {
  const auto* bytes = static_cast<const unsigned char*>(config);
  for (int t = 0; t < 8; ++t) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * t, sizeof row_bytes);
    tiles[t] = {bytes[48 + t], row_bytes, {}};
  }
}

inline void release() {
  for (Tile& tile : tiles) tile = {};
}

inline void zero(int t) { std::memset(tiles[t].bytes, 0, sizeof tiles[t].bytes); }

inline void load(int t, const void* base, int64_t stride) {
  zero(t);
  for (int r = 0; r < tiles[t].rows; ++r) {
    std::memcpy(tiles[t].bytes[r], static_cast<const char*>(base) + r * stride, tiles[t].row_bytes);
  }
}

inline void store(int t, void* base, int64_t stride) {
  for (int r = 0; r < tiles[t].rows; ++r) {
    std::memcpy(static_cast<char*>(base) + r * stride, tiles[t].bytes[r], tiles[t].row_bytes);
  }
}

inline float normal(float value) { return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value; }

inline float half(const Tile& tile, int row, int index) {
  uint16_t stored;
  std::memcpy(&stored, tile.bytes[row] + 2 * index, sizeof stored);
  const uint32_t bits = static_cast<uint32_t>(stored) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return normal(value);
}

// The products of even and of odd places are summed by themselves.
inline void multiply_add(int sums, int a, int b) {
  for (int m = 0; m < tiles[sums].rows; ++m) {
    for (int n = 0; n < tiles[sums].row_bytes / 4; ++n) {
      float of_places[2] = {};
      for (int k = 0; k < tiles[a].row_bytes / 4; ++k) {
        for (int odd = 0; odd < 2; ++odd) {
          const float x = half(tiles[a], m, 2 * k + odd), y = half(tiles[b], k, 2 * n + odd);
          of_places[odd] = normal(std::fma(x, y, of_places[odd]));
        }
      }
      float sum;
      std::memcpy(&sum, tiles[sums].bytes[m] + 4 * n, sizeof sum);
      sum = normal(normal(sum) + normal(of_places[0] + of_places[1]));
      std::memcpy(tiles[sums].bytes[m] + 4 * n, &sum, sizeof sum);
    }
  }
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig emulated::load_config
#define _tile_release emulated::release
#define _tile_zero emulated::zero
#define _tile_loadd emulated::load
#define _tile_stored emulated::store
#define _tile_dpbf16ps emulated::multiply_add
