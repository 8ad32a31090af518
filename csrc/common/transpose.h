#pragma once

#include <cstdint>

#include "common/fetch.h"
#include "common/stored.h"

namespace pearl::PEARL_SIMD {

// out[c * kWidth + j], in float32: element c of row j, of `columns` elements of the first `count` rows; 0 past the last.
// kWidth is whole vectors, `stride` in bytes. Fetched meanwhile is what lies `ahead` bytes later.
template <typename Type, int kWidth>
void transpose(const void* rows, int64_t stride, int64_t count, int64_t columns, int64_t ahead, float* out) {
  using Stored = typename Type::Stored;
  const auto row = [&](int64_t j) {
    return reinterpret_cast<const Stored*>(static_cast<const char*>(rows) + j * stride);
  };
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    for (int first = 0; first < kWidth; first += kLanes) {
      Float vectors[2][kLanes];
      for (int j = 0; j < kLanes; ++j) {
        const Stored* p = row(first + j) + c;
        fetch(reinterpret_cast<const char*>(p) + ahead);
        vectors[0][j] = first + j < count ? Type::load(p) : Float{};
      }
      int from = 0;
      for (int step = 1; step < kLanes; step *= 2, from ^= 1) {
        for (int j = 0; j < kLanes / 2; ++j) {
          vectors[from ^ 1][2 * j] = interleave_first(vectors[from][j], vectors[from][j + kLanes / 2]);
          vectors[from ^ 1][2 * j + 1] = interleave_second(vectors[from][j], vectors[from][j + kLanes / 2]);
        }
      }
      for (int j = 0; j < kLanes; ++j) store_float32(out + (c + j) * kWidth + first, vectors[from][j]);
    }
  }
  for (; c < columns; ++c) {
    for (int64_t j = 0; j < kWidth; ++j) out[c * kWidth + j] = j < count ? Type::value(row(j)[c]) : 0.0f;
  }
}

}  // namespace pearl::PEARL_SIMD
