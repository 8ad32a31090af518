// window_linear with bfloat16 weights by tiles, of many shapes, beside float64. Says what is wrong and exits with 1, or
// prints a number that depends on every bit of the results.

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "common/half.h"
#include "cpu_level.h"

#ifdef PEARL_ASKS_FOR_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

using namespace pearl;

namespace {

std::mt19937 generator(0);
int wrong = 0;
uint32_t all_bits = 0;

std::vector<float> random_floats(int64_t count) {
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(static_cast<int32_t>(generator())) * 0x1p-31f;
  return values;
}

struct Shape {
  int64_t rows, inputs, outputs;
};

// The weight (outputs, inputs) in the order of packed ones.
std::vector<uint16_t> packed(const std::vector<uint16_t>& weight, const Shape& shape) {
  const int64_t blocks = (shape.outputs + kBlockOutputs - 1) / kBlockOutputs;
  std::vector<uint16_t> together(blocks * kBlockOutputs * shape.inputs);
  for (int64_t n = 0; n < shape.outputs; ++n) {
    for (int64_t k = 0; k < shape.inputs; ++k) {
      const int64_t block = n / kBlockOutputs * kBlockOutputs * shape.inputs;
      together[block + k / 2 * 2 * kBlockOutputs + n % kBlockOutputs * 2 + k % 2] = weight[n * shape.inputs + k];
    }
  }
  return together;
}

void check(const Shape& shape) {
  const int64_t stride = shape.inputs + 3;
  const std::vector<float> x = random_floats(shape.rows * stride), bias = random_floats(shape.outputs);
  std::vector<uint16_t> weight;
  for (const float value : random_floats(shape.outputs * shape.inputs)) weight.push_back(float_to_bfloat16(value));
  const std::vector<uint16_t> together = packed(weight, shape);
  std::vector<float> out[3];
  for (std::vector<float>& found : out) found.assign(shape.rows * shape.outputs, NAN);
  const auto layer = [&](const std::vector<uint16_t>& stored, bool is_packed, float* found) {
    return LinearLayer{stored.data(), WeightType::kBFloat16, shape.outputs, shape.inputs,
                       is_packed,     bias.data(),           nullptr,       found};
  };
  const LinearLayer layers[] = {layer(together, true, out[0].data()), layer(weight, false, out[1].data())};
  PEARL_SIMD::window_linear({x.data(), shape.rows, stride, shape.inputs, layers, 2, 2});
  for (int64_t r = 0; r < shape.rows; ++r) {
    const LinearLayer alone = layer(together, true, out[2].data() + r * shape.outputs);
    PEARL_SIMD::window_linear({x.data() + r * stride, 1, stride, shape.inputs, &alone, 1, 1});
  }
  for (int64_t r = 0; r < shape.rows; ++r) {
    for (int64_t n = 0; n < shape.outputs; ++n) {
      double wanted = bias[n], size = std::fabs(bias[n]);
      for (int64_t k = 0; k < shape.inputs; ++k) {
        const double product = static_cast<double>(x[r * stride + k]) * bfloat16_to_float(weight[n * shape.inputs + k]);
        wanted += product;
        size += std::fabs(product);
      }
      const int64_t at = r * shape.outputs + n;
      const bool is_near = std::fabs(out[0][at] - wanted) <= 3e-7 * size;
      if (!is_near || out[1][at] != out[0][at] || out[2][at] != out[0][at]) {
        std::printf(
            "%ld rows, %ld inputs, %ld outputs, at row %ld, output %ld: expected %.9g, packed %.9g, not %.9g, alone "
            "%.9g\n",
            shape.rows, shape.inputs, shape.outputs, r, n, wanted, out[0][at], out[1][at], out[2][at]);
        wrong = 1;
        return;
      }
      all_bits = all_bits * 31 + bits_of(out[0][at]);
    }
  }
}

}  // namespace

int main() {
#ifdef PEARL_ASKS_FOR_TILES
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return 2;
#endif
  for (const int64_t rows : {1, 2, 5, 15, 16, 17, 33, 49}) {
    for (const int64_t inputs : {32, 64, 96, 1056}) {
      for (const int64_t outputs : {1, 31, 32, 33, 64, 97, 160}) check({rows, inputs, outputs});
    }
  }
  std::printf("%08x\n", all_bits);
  return wrong;
}
