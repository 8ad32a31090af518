#pragma once

#include <cstdint>

#include "common/macros.h"
#include "common/types.h"

namespace pearl {

// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKeyStep0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxKeyStep1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;
constexpr int kPhiloxLanes = 4;  // ids served by one counter

// Everything a draw depends on but the vocabulary id.
struct NoiseKey {
  uint32_t key0, key1, position, purpose, epoch;
};

PEARL_HOST_DEVICE NoiseKey make_noise_key(int64_t seed, int64_t position, Purpose purpose, int64_t epoch) {
  const uint64_t bits = static_cast<uint64_t>(seed);
  return {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32), static_cast<uint32_t>(position),
          static_cast<uint32_t>(purpose), static_cast<uint32_t>(epoch)};
}

struct PhiloxWords {
  uint32_t w[kPhiloxLanes];
};

// The words of ids [kPhiloxLanes * counter, kPhiloxLanes * (counter + 1)).
PEARL_HOST_DEVICE PhiloxWords philox_words(const NoiseKey& key, uint32_t counter) {
  uint32_t c0 = counter, c1 = key.position, c2 = key.purpose, c3 = key.epoch;
  uint32_t k0 = key.key0, k1 = key.key1;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += kPhiloxKeyStep0;
    k1 += kPhiloxKeyStep1;
  }
  return {{c0, c1, c2, c3}};
}

PEARL_HOST_DEVICE uint32_t philox_word(const NoiseKey& key, int64_t vocab_id) {
  const PhiloxWords words = philox_words(key, static_cast<uint32_t>(vocab_id / kPhiloxLanes));
  switch (vocab_id % kPhiloxLanes) {
    case 0: return words.w[0];
    case 1: return words.w[1];
    case 2: return words.w[2];
    default: return words.w[3];
  }
}

// In (0, 1), exact in float32: never 0, never 1.
PEARL_HOST_DEVICE double unit_from_word(uint32_t word) { return ((word >> 9) + 0.5) * 0x1p-23; }

PEARL_HOST_DEVICE double uniform(const NoiseKey& key) { return unit_from_word(philox_word(key, 0)); }

}  // namespace pearl
