#include "window_linear/window_linear.h"

#include <algorithm>

#include "common/parallel.h"
#include "common/stored.h"
#include "cpu_level.h"

// A few rows against a whole weight matrix: reading the weights is the cost, so each is read once for up to kTileRows
// rows, in the type it is stored in. A result is summed in the same order whatever the rows beside it, the tile it falls
// into and the number of threads.
namespace pearl::PEARL_SIMD {
namespace {

constexpr int kTileRows = kLanes >= 16 ? 12 : 6;  // with two outputs as many sums as registers hold
// Of int8 the instructions are the cost, and so there are more outputs to a row and one prefetch to a line of the cache;
// where reading is, four rows of weights at a time are read more slowly than two.
template <typename Weight>
constexpr bool kSmall = sizeof(typename Weight::Stored) == 1;
template <typename Weight>
constexpr int kTileOutputs = kSmall<Weight> ? 4 : 2;
constexpr int kAhead = 8192;               // bytes: rows are short, and the processor itself fetches ahead too late
constexpr int64_t kPieceBytes = 64 << 10;  // of weights: less is not worth waking a thread for

template <typename Weight, int Rows, int Outputs>
void tile(const LinearArgs& args, const LinearLayer& layer, int64_t row, int64_t output) {
  const float* x = args.x + row * args.x_stride;
  const auto* weight = static_cast<const typename Weight::Stored*>(layer.weight) + output * layer.weight_stride;
  Float sums[Rows][Outputs] = {};
  int64_t k = 0;
  const auto step = [&] {
    Float weights[Outputs];
    for (int n = 0; n < Outputs; ++n) weights[n] = Weight::load(weight + n * layer.weight_stride + k);
    for (int r = 0; r < Rows; ++r) {
      const Float values = load_float32(x + r * args.x_stride + k);
      for (int n = 0; n < Outputs; ++n) sums[r][n] = fma(values, weights[n], sums[r][n]);
    }
    k += kLanes;
  };
  constexpr int64_t kLine = kSmall<Weight> ? 64 : kLanes;
  while (k + kLine <= args.inputs) {
    for (int n = 0; n < Outputs; ++n) {
      __builtin_prefetch(reinterpret_cast<const char*>(weight + n * layer.weight_stride + k) + kAhead);
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kLine; i += kLanes) step();
  }
  while (k + kLanes <= args.inputs) step();
  for (int r = 0; r < Rows; ++r) {
    for (int n = 0; n < Outputs; ++n) {
      float sum = reduce_add(sums[r][n]);
      for (int64_t i = k; i < args.inputs; ++i) {
        sum += x[r * args.x_stride + i] * Weight::value(weight[n * layer.weight_stride + i]);
      }
      if (layer.scale) sum *= layer.scale[output + n];
      layer.out[(row + r) * layer.outputs + output + n] = layer.bias ? sum + layer.bias[output + n] : sum;
    }
  }
}

template <typename Weight, int Rows>
void rows_tile(const LinearArgs& args, const LinearLayer& layer, int rows, int64_t row, int64_t output, int outputs) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return rows_tile<Weight, Rows - 1>(args, layer, rows, row, output, outputs);
  }
  constexpr int kAtOnce = Rows <= 2 ? kTileOutputs<Weight> : 2;
  int n = 0;
  for (; n + kAtOnce <= outputs; n += kAtOnce) tile<Weight, Rows, kAtOnce>(args, layer, row, output + n);
  for (; n < outputs; ++n) tile<Weight, Rows, 1>(args, layer, row, output + n);
}

template <typename Weight>
void outputs_between(const LinearArgs& args, const LinearLayer& layer, int64_t begin, int64_t end) {
  const int64_t tiles = (args.rows + kTileRows - 1) / kTileRows;
  for (int64_t output = begin; output < end; output += kTileOutputs<Weight>) {
    const int outputs = static_cast<int>(std::min<int64_t>(kTileOutputs<Weight>, end - output));
    for (int64_t t = 0; t < tiles; ++t) {  // of nearly equal size
      const int64_t row = args.rows * t / tiles;
      const int rows = static_cast<int>(args.rows * (t + 1) / tiles - row);
      rows_tile<Weight, kTileRows>(args, layer, rows, row, output, outputs);
    }
  }
}

// The outputs of all layers are counted through, one layer after the other.
void all_between(void* context, int64_t begin, int64_t end) {
  const LinearArgs& args = *static_cast<const LinearArgs*>(context);
  int64_t first = 0;
  for (int64_t i = 0; i < args.count; ++i) {
    const LinearLayer& layer = args.layers[i];
    const int64_t from = std::max<int64_t>(begin - first, 0), to = std::min(end - first, layer.outputs);
    first += layer.outputs;
    if (from >= to) continue;
    switch (layer.type) {
      case WeightType::kFloat32: outputs_between<Float32>(args, layer, from, to); break;
      case WeightType::kBFloat16: outputs_between<BFloat16>(args, layer, from, to); break;
      case WeightType::kFloat16: outputs_between<Float16>(args, layer, from, to); break;
      case WeightType::kInt8: outputs_between<Int8>(args, layer, from, to); break;
    }
  }
}

int64_t size_of(WeightType type) {
  switch (type) {
    case WeightType::kFloat32: return sizeof(Float32::Stored);
    case WeightType::kInt8: return sizeof(Int8::Stored);
    default: return sizeof(BFloat16::Stored);
  }
}

}  // namespace

void window_linear(const LinearArgs& args) {
  int64_t outputs = 0, bytes = 0;
  for (int64_t i = 0; i < args.count; ++i) {
    outputs += args.layers[i].outputs;
    bytes += args.layers[i].outputs * args.inputs * size_of(args.layers[i].type);
  }
  const int64_t pieces = std::min<int64_t>(4 * args.threads, bytes / kPieceBytes);
  parallel_for(outputs, pieces, args.threads, all_between, const_cast<LinearArgs*>(&args));
}

}  // namespace pearl::PEARL_SIMD
