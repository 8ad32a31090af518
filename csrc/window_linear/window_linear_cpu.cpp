#include "window_linear/window_linear.h"

#include <algorithm>

#include "common/fetch.h"
#include "common/parallel.h"
#include "common/stored.h"
#include "cpu_level.h"

// Rows against a whole weight matrix. Where they are few, reading the weights is the cost: each is read once for up to
// kTileRows rows, in the type it is stored in. Where they are many, the rows of a tile are read from the nearest cache,
// part by part, for a block of outputs whose weights stay in the next. A result is summed in the same order whatever the
// rows beside it, the tile it falls into and the number of threads.
namespace pearl::PEARL_SIMD {
namespace {

constexpr int kTileRows = kRegisters >= 32 ? 10 : 6;  // with two outputs nearly as many sums as registers hold
// Rows of weights read at once: as many as the sums leave registers for, and for a single row enough of them that one
// multiply-add does not wait for the one before.
template <int Rows>
constexpr int kTileOutputs = Rows == 1                    ? std::max(4, kRegisters / kLanes)
                             : 4 * Rows + 5 <= kRegisters ? 4
                                                          : 2;
constexpr int kBlockOutputs = 64;
constexpr int64_t kPartBytes = 30 << 10;   // of a tile's rows
constexpr int64_t kPieceBytes = 64 << 10;  // of weights: less is not worth waking a thread for

// Columns [begin, end) of a tile's rows, whole vectors: of each row the first vector, then of each the second, and so on.
struct Part {
  const float* x;
  int64_t begin, end;
  bool first, last;
};

// kept: the sums of the outputs, from one part to the next
template <typename Weight, int Rows, int Outputs>
void tile(const LinearArgs& args, const LinearLayer& layer, const Part& part, int64_t row, int64_t output,
          Float (*kept)[Rows]) {
  const auto* weight = static_cast<const typename Weight::Stored*>(layer.weight) + output * layer.weight_stride;
  // The same columns of a later tile's outputs.
  const int64_t tile_bytes = std::max<int64_t>(1, Outputs * layer.weight_stride * sizeof(*weight));
  const int64_t ahead = (kAhead + tile_bytes - 1) / tile_bytes * tile_bytes;
  Float sums[Outputs][Rows] = {};
  if (!part.first) {
#pragma GCC unroll 8
    for (int n = 0; n < Outputs; ++n) {
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) sums[n][r] = kept[n][r];
    }
  }
  const float* x = part.x;
  int64_t k = part.begin;
  const auto step = [&] {
    Float weights[Outputs];
    for (int n = 0; n < Outputs; ++n) weights[n] = Weight::load(weight + n * layer.weight_stride + k);
    for (int r = 0; r < Rows; ++r) {
      const Float values = load_float32(x + r * kLanes);
      for (int n = 0; n < Outputs; ++n) sums[n][r] = fma(values, weights[n], sums[n][r]);
    }
    x += Rows * kLanes;
    k += kLanes;
  };
  constexpr int64_t kTogether = std::max<int64_t>(kLanes, kLine / sizeof(*weight));
  while (k + kTogether <= part.end) {
    for (int n = 0; n < Outputs; ++n) {
      fetch(reinterpret_cast<const char*>(weight + n * layer.weight_stride + k) + ahead);
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kTogether; i += kLanes) step();
  }
  while (k + kLanes <= part.end) step();
  if (!part.last) {
#pragma GCC unroll 8
    for (int n = 0; n < Outputs; ++n) {
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) kept[n][r] = sums[n][r];
    }
    return;
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    const float* rest = args.x + (row + r) * args.x_stride;
#pragma GCC unroll 8
    for (int n = 0; n < Outputs; ++n) {
      float sum = reduce_add(sums[n][r]);
      for (int64_t i = k; i < args.inputs; ++i) sum += rest[i] * Weight::value(weight[n * layer.weight_stride + i]);
      if (layer.scale) sum *= layer.scale[output + n];
      layer.out[(row + r) * layer.outputs + output + n] = layer.bias ? sum + layer.bias[output + n] : sum;
    }
  }
}

// Of `rows` rows and at most kBlockOutputs outputs.
template <typename Weight, int Rows>
void rows_tile(const LinearArgs& args, const LinearLayer& layer, int rows, int64_t row, int64_t output, int outputs) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return rows_tile<Weight, Rows - 1>(args, layer, rows, row, output, outputs);
  }
  constexpr int kAtOnce = kTileOutputs<Rows>;
  constexpr int64_t kMost = kPartBytes / (Rows * sizeof(Float));
  const float* x = args.x + row * args.x_stride;
  const int64_t vectors = args.inputs / kLanes, parts = std::max<int64_t>(1, (vectors + kMost - 1) / kMost);
  Float packed[kMost * Rows], kept[kBlockOutputs][Rows];
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t begin = vectors * p / parts * kLanes, end = vectors * (p + 1) / parts * kLanes;
    Part part = {x + begin, begin, end, p == 0, p == parts - 1};
    if constexpr (Rows > 1) {
      Float* next = packed;
      for (int64_t k = begin; k < end; k += kLanes) {
        for (int r = 0; r < Rows; ++r) *next++ = load_float32(x + r * args.x_stride + k);
      }
      part.x = reinterpret_cast<const float*>(packed);
    }
    int n = 0;
    for (; n + kAtOnce <= outputs; n += kAtOnce) {
      tile<Weight, Rows, kAtOnce>(args, layer, part, row, output + n, kept + n);
    }
    for (; n < outputs; ++n) tile<Weight, Rows, 1>(args, layer, part, row, output + n, kept + n);
  }
}

template <typename Weight>
void outputs_between(const LinearArgs& args, const LinearLayer& layer, int64_t begin, int64_t end) {
  const int64_t tiles = (args.rows + kTileRows - 1) / kTileRows;
  for (int64_t output = begin; output < end; output += kBlockOutputs) {
    const int outputs = static_cast<int>(std::min<int64_t>(kBlockOutputs, end - output));
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
