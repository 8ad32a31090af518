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
    for (int i = 0; i < kCounters; ++i) lane_counters_[i] = i / 2 + (i % 2) * (kCounters / 2);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      round_key0_[round] = Wide{} + (key.key0 + static_cast<uint32_t>(round) * kPhiloxKeyStep0);
      round_key1_[round] = Wide{} + (key.key1 + static_cast<uint32_t>(round) * kPhiloxKeyStep1);
    }
  }

  PEARL_INLINE Words words(int64_t begin) const {
    Wide c0[kHalves], c1[kHalves], c2[kHalves], c3[kHalves];
    for (int h = 0; h < kHalves; ++h) {
      c0[h] = lane_counters_ + static_cast<uint64_t>(begin / kPhiloxLanes + h * kCounters);
      c1[h] = Wide{} + key_.position;
      c2[h] = Wide{} + key_.purpose;
      c3[h] = Wide{} + key_.epoch;
    }
    // Round by round for both halves, as one alone would wait for its multiplications. The high half of each lane is
    // left dirty: only low halves are multiplied and kept.
    for (int round = 0; round < kPhiloxRounds; ++round) {
      for (int h = 0; h < kHalves; ++h) {
        const Wide product0 = multiply_low_words(c0[h], Wide{} + kPhiloxMultiplier0);
        const Wide product1 = multiply_low_words(c2[h], Wide{} + kPhiloxMultiplier1);
        c0[h] = (product1 >> 32) ^ c1[h] ^ round_key0_[round];
        c1[h] = product1;
        c2[h] = (product0 >> 32) ^ c3[h] ^ round_key1_[round];
        c3[h] = product0;
      }
    }
    Words out;
    constexpr uint64_t kLow = 0xffffffffu;
    for (int h = 0; h < kHalves; ++h) {
      const Wide lanes01 = (c0[h] & kLow) | (c1[h] << 32), lanes23 = (c2[h] & kLow) | (c3[h] << 32);
      out.w[2 * h] = interleave_even_pairs(lanes01, lanes23);
      out.w[2 * h + 1] = interleave_odd_pairs(lanes01, lanes23);
    }
    return out;
  }

 private:
  static constexpr int kCounters = kLanes / 2;  // in one vector, each in the low half of a 64-bit lane
  static constexpr int kHalves = kChunk / kPhiloxLanes / kCounters;

  NoiseKey key_;
  Wide lane_counters_;  // in such an order that interleaving within 128 bits puts ids in theirs
  Wide round_key0_[kPhiloxRounds], round_key1_[kPhiloxRounds];
};

// 1 - u for the u of each word, exact: a lower bound of -log(u).
static PEARL_INLINE Float one_minus_unit(Word words) {
  const Int steps = (Int)(~words >> 9);
  return fma(__builtin_convertvector(steps, Float), broadcast(0x1p-23f), broadcast(0x1p-24f));
}

}  // namespace pearl::PEARL_SIMD
