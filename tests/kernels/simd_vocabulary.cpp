// Every function of common/simd of one level beside what it means, lane by lane. Says what differs and exits with 1.

#include <cmath>
#include <cstdio>
#include <limits>

#include "common/half.h"
#include "common/simd/simd.h"

using namespace pearl;
using namespace pearl::PEARL_SIMD;

namespace {

int wrong = 0;

#define CHECK(condition) \
  if (!(condition)) std::printf("line %d: %s\n", __LINE__, #condition), wrong = 1

constexpr float kInf = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kSpecial[] = {-kInf, -3.5f, -1.0f, -0.0f, 0.0f, 1.0f, 2.25f, kInf, kNaN};
constexpr int kSpecials = sizeof kSpecial / sizeof *kSpecial;

bool same(float a, float b) { return bits_of(a) == bits_of(b) || (std::isnan(a) && std::isnan(b)); }

void loads() {
  for (int first = 0; first < 1 << 16; first += kLanes) {
    uint16_t stored[kLanes];
    for (int i = 0; i < kLanes; ++i) stored[i] = static_cast<uint16_t>(first + i);
    const Float of_bfloat16 = load_bfloat16(stored), of_float16 = load_float16(stored);
    for (int i = 0; i < kLanes; ++i) {
      CHECK(same(of_bfloat16[i], bfloat16_to_float(stored[i])));
      CHECK(same(of_float16[i], float16_to_float(stored[i])));
    }
  }
  for (int first = -128; first < 128; first += kLanes) {
    int8_t stored[kLanes];
    for (int i = 0; i < kLanes; ++i) stored[i] = static_cast<int8_t>(first + i);
    const Float found = load_int8(stored);
    for (int i = 0; i < kLanes; ++i) CHECK(found[i] == static_cast<float>(first + i));
  }
}

void of_two(Float a, Float b) {
  const Mask more = greater(a, b), not_less = greater_equal(a, b), no_number = unordered(a, b);
  const Float most = max(a, b), least = min(a, b), chosen = choose(more, a, b), kept = zero_unless(more, a);
  const Float first = interleave_first(a, b), second = interleave_second(a, b), product = fma(a, b, broadcast(0.5f));
  float packed[2 * kLanes];
  const int count = compress(packed, a, more);
  uint32_t bits = 0;
  for (int i = 0, n = 0; i < kLanes; ++i) {
    const float x = a[i], y = b[i];
    bits |= static_cast<uint32_t>(x > y) << i;
    CHECK((to_bits(not_less) >> i & 1) == (x >= y));
    CHECK((to_bits(no_number) >> i & 1) == (std::isnan(x) || std::isnan(y)));
    CHECK(same(most[i], x > y ? x : y));
    CHECK(same(least[i], x < y ? x : y));
    CHECK(same(chosen[i], x > y ? x : y));
    CHECK(same(kept[i], x > y ? x : 0.0f));
    CHECK(same(product[i], x * y + 0.5f));
    CHECK(same(first[i], i % 2 ? b[i / 2] : a[i / 2]));
    CHECK(same(second[i], i % 2 ? b[(kLanes + i) / 2] : a[(kLanes + i) / 2]));
    if (x > y) CHECK(same(packed[n++], x));
  }
  CHECK(to_bits(more) == bits);
  CHECK(any(more) == (bits != 0));
  CHECK(count == __builtin_popcount(bits));
}

void whole_vectors() {
  Float rising = Float{};
  for (int i = 0; i < kLanes; ++i) rising[i] = static_cast<float>(i) - 3;
  CHECK(reduce_max(rising) == kLanes - 4);
  CHECK(reduce_add(rising) == kLanes * (kLanes - 1) / 2 - 3 * kLanes);
  for (int count = 0; count <= kLanes; ++count) CHECK(to_bits(first_lanes(count)) == (1u << count) - 1);
}

void integers() {
  Wide a{}, b{};
  for (int i = 0; i < kLanes / 2; ++i) {
    a[i] = 0x9e3779b97f4a7c15u * static_cast<uint64_t>(i + 1);
    b[i] = 0xd1b54a32d192ed03u * static_cast<uint64_t>(i + 7);
  }
  const Word words_a = (Word)a, words_b = (Word)b, most = max(words_a, words_b);
  const Wide product = multiply_low_words(a, b);
  const Wide even = (Wide)interleave_even_pairs(a, b), odd = (Wide)interleave_odd_pairs(a, b);
  for (int i = 0; i < kLanes; ++i) CHECK(most[i] == (words_a[i] > words_b[i] ? words_a[i] : words_b[i]));
  for (int i = 0; i < kLanes / 2; ++i) {
    CHECK(product[i] == (a[i] & 0xffffffffu) * (b[i] & 0xffffffffu));
    CHECK(even[i] == (i % 2 ? b : a)[i - i % 2]);
    CHECK(odd[i] == (i % 2 ? b : a)[i - i % 2 + 1]);
  }
}

void exponentials() {
  for (float x = -86; x <= 0; x += 0.0137f) {
    const double wanted = std::exp(static_cast<double>(x));
    CHECK(std::fabs(exp(broadcast(x))[kLanes - 1] - wanted) < 5e-7 * wanted);
  }
  CHECK(exp(broadcast(-kInf))[0] < 1e-37f);
  CHECK(std::isnan(exp(broadcast(kNaN))[0]));
}

}  // namespace

int main() {
  loads();
  for (int shift = 0; shift < kSpecials; ++shift) {
    Float a{}, b{};
    for (int i = 0; i < kLanes; ++i) {
      a[i] = kSpecial[(i + shift) % kSpecials];
      b[i] = kSpecial[(5 * i + 2 * shift) % kSpecials];
    }
    of_two(a, b);
  }
  whole_vectors();
  integers();
  exponentials();
  return wrong;
}
