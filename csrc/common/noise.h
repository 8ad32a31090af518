#pragma once

#include "common/philox.h"
#include "common/row.h"

namespace pearl::PEARL_SIMD {

// Philox for whole chunks: as philox_word, for kChunk consecutive ids at once.
class ChunkNoise {
 public:
  struct Words {
    Word w[kChunkVectors];
  };

  explicit ChunkNoise(const NoiseKey& key) : key_(key) {
    for (int round = 0; round < kPhiloxRounds; ++round) {
      round_key0_[round] = key.key0 + static_cast<uint32_t>(round) * kPhiloxKeyStep0;
      round_key1_[round] = key.key1 + static_cast<uint32_t>(round) * kPhiloxKeyStep1;
    }
  }

  PEARL_INLINE Words words(int64_t begin) const {
    const uint64_t counter = static_cast<uint64_t>(begin / kPhiloxLanes);
    Words out;
    pair(counter, out.w[0], out.w[1]);
    pair(counter + kCounters, out.w[2], out.w[3]);
    return out;
  }

 private:
  static constexpr int kCounters = kLanes / 2;  // in one vector, each in the low half of a 64-bit lane

  // The words of 2 * kLanes ids. Counters lie so that interleaving within 128-bit lanes puts ids in order.
  PEARL_INLINE void pair(uint64_t first_counter, Word& first, Word& second) const {
    Wide c0;
    for (int i = 0; i < kCounters; ++i) c0[i] = first_counter + i / 2 + (i % 2) * (kCounters / 2);
    Wide c1 = Wide{} + key_.position, c2 = Wide{} + key_.purpose, c3 = Wide{} + key_.epoch;
    // High halves are left dirty: products and the final masks look at low halves only.
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const Wide product0 = multiply_low_words(c0, Wide{} + kPhiloxMultiplier0);
      const Wide product1 = multiply_low_words(c2, Wide{} + kPhiloxMultiplier1);
      c0 = (product1 >> 32) ^ c1 ^ round_key0_[round];
      c1 = product1;
      c2 = (product0 >> 32) ^ c3 ^ round_key1_[round];
      c3 = product0;
    }
    constexpr uint64_t kLow = 0xffffffffu;
    const Wide lanes01 = (c0 & kLow) | (c1 << 32), lanes23 = (c2 & kLow) | (c3 << 32);
    first = interleave_even_pairs(lanes01, lanes23);
    second = interleave_odd_pairs(lanes01, lanes23);
  }

  NoiseKey key_;
  uint64_t round_key0_[kPhiloxRounds], round_key1_[kPhiloxRounds];
};

// 1 - u for the u of each word, exact.
static PEARL_INLINE Float one_minus_unit(Word words) {
  const Int steps = (Int)(~words >> 9);
  return fma(__builtin_convertvector(steps, Float), broadcast(0x1p-23f), broadcast(0x1p-24f));
}

}  // namespace pearl::PEARL_SIMD
