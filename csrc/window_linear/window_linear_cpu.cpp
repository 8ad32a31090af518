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

constexpr int kTileRows = kLanes >= 16 ? 12 : 6;  // with kTileOutputs as many sums as registers hold
constexpr int kTileOutputs = 2;
constexpr int kAhead = 8192;               // bytes: rows are short, and the processor itself fetches ahead too late
constexpr int64_t kPieceBytes = 64 << 10;  // of weights: less is not worth waking a thread for

template <typename Weight, int Rows, int Outputs>
void tile(const LinearArgs& args, const LinearLayer& layer, int64_t row, int64_t output) {
  const float* x = args.x + row * args.x_stride;
  const auto* weight = static_cast<const typename Weight::Stored*>(layer.weight) + output * layer.weight_stride;
  Float sums[Rows][Outputs] = {};
  int64_t k = 0;
  for (; k + kLanes <= args.inputs; k += kLanes) {
    Float weights[Outputs];
    for (int n = 0; n < Outputs; ++n) {
      const auto* p = weight + n * layer.weight_stride + k;
      __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead);
      weights[n] = Weight::load(p);
    }
    for (int r = 0; r < Rows; ++r) {
      const Float values = load_float32(x + r * args.x_stride + k);
      for (int n = 0; n < Outputs; ++n) sums[r][n] = fma(values, weights[n], sums[r][n]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int n = 0; n < Outputs; ++n) {
      float sum = reduce_add(sums[r][n]);
      for (int64_t i = k; i < args.inputs; ++i) {
        sum += x[r * args.x_stride + i] * Weight::value(weight[n * layer.weight_stride + i]);
      }
      layer.out[(row + r) * layer.outputs + output + n] = layer.bias ? sum + layer.bias[output + n] : sum;
    }
  }
}

template <typename Weight, int Rows>
void rows_tile(const LinearArgs& args, const LinearLayer& layer, int rows, int64_t row, int64_t output, int outputs) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return rows_tile<Weight, Rows - 1>(args, layer, rows, row, output, outputs);
  }
  outputs == kTileOutputs ? tile<Weight, Rows, kTileOutputs>(args, layer, row, output)
                          : tile<Weight, Rows, 1>(args, layer, row, output);
}

template <typename Weight>
void outputs_between(const LinearArgs& args, const LinearLayer& layer, int64_t begin, int64_t end) {
  static_assert(kTileOutputs == 2, "a remainder is one output");
  const int64_t tiles = (args.rows + kTileRows - 1) / kTileRows;
  for (int64_t output = begin; output < end; output += kTileOutputs) {
    const int outputs = output + kTileOutputs <= end ? kTileOutputs : 1;
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
    switch (layer.dtype) {
      case DType::kFloat32: outputs_between<Float32>(args, layer, from, to); break;
      case DType::kBFloat16: outputs_between<BFloat16>(args, layer, from, to); break;
      case DType::kFloat16: outputs_between<Float16>(args, layer, from, to); break;
    }
  }
}

}  // namespace

void window_linear(const LinearArgs& args) {
  int64_t outputs = 0, bytes = 0;
  for (int64_t i = 0; i < args.count; ++i) {
    outputs += args.layers[i].outputs;
    bytes += args.layers[i].outputs * args.inputs * (args.layers[i].dtype == DType::kFloat32 ? 4 : 2);
  }
  const int64_t pieces = std::min<int64_t>(4 * args.threads, bytes / kPieceBytes);
  parallel_for(outputs, pieces, args.threads, all_between, const_cast<LinearArgs*>(&args));
}

}  // namespace pearl::PEARL_SIMD
