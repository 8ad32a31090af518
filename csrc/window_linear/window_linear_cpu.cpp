#include "window_linear/window_linear.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "common/fetch.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/stored.h"
#include "common/transpose.h"
#include "cpu_level.h"
#include "window_linear/finish.h"
#include "window_linear/tiles.h"

// Rows against a whole weight matrix: each number of a row, broadcast, times the weights of many outputs at once. Where
// rows are few, reading the weights is the cost: each is read once for up to kTileRows rows. Where they are many, a part
// of some outputs' weights stays in the second cache, and tile after tile of the rows is multiplied with it. A result is
// summed in the order of its inputs, part by part, whatever the rows beside it, the tile it falls into, the order in
// which its weights are stored and the number of threads.
namespace pearl::PEARL_SIMD {
namespace {

constexpr int kChunk = 16;             // inputs: of each row of a tile so many lie together
constexpr int64_t kPart = 1024;        // inputs, at most, whose products are summed by themselves
constexpr int64_t kTurn = 128;         // inputs, whole chunks
constexpr int kStreams = 4;            // places in memory that a block is fetched from at once
constexpr int64_t kGroup = 256 << 10;  // bytes of weights that stay in the second cache

// A tile's outputs come in pairs of vectors, kHalf outputs apart: pair p of a block is p * kLanes behind its begin.
constexpr int kHalf = kBlockOutputs / 2;
constexpr int kBlockPairs = kHalf / kLanes;
constexpr int kTileRows = kRegisters >= 32 ? 12 : 6;  // with one pair nearly as many sums as registers hold
// As many pairs as the sums leave registers for, and no more than it takes to wait for no sum.
template <int Rows>
constexpr int kTilePairs = std::max(2, kBlockPairs) * 2 * (Rows + 1) + 2 <= kRegisters ? std::max(2, kBlockPairs)
                           : 4 * (Rows + 1) + 2 <= kRegisters                          ? 2
                                                                                       : 1;

// Of one input, its weights for a block's pair p.
template <typename Weight>
PEARL_INLINE void load_pair(const typename Weight::Stored* input, int p, Float& first, Float& second) {
  first = Weight::load(input + p * kLanes);
  second = Weight::load(input + kHalf + p * kLanes);
}

// The same of two inputs whose weights share words: of the second one or the first.
PEARL_INLINE void load_pair_of_words(const uint16_t* inputs, bool of_second, int p, Float& first, Float& second) {
  Word words[2];
  std::memcpy(&words[0], inputs + 2 * p * kLanes, sizeof words[0]);
  std::memcpy(&words[1], inputs + 2 * (kHalf + p * kLanes), sizeof words[1]);
  first = (Float)(of_second ? words[0] & 0xffff0000u : words[0] << 16);
  second = (Float)(of_second ? words[1] & 0xffff0000u : words[1] << 16);
}

// A part of the weights of whole blocks of outputs. Those of a block are (inputs, kBlockOutputs), blocks are `stride`
// weights apart.
template <typename Weight>
struct Blocks {
  const typename Weight::Stored* weights;
  int64_t stride, inputs;
  int64_t first_output, outputs;
  bool begin, end;  // whether a thread's piece of the weights begins or ends with these blocks
};

// Adds to the sums of a tile, from a block's pair p on, the products of inputs begin ... end - 1. A tile of more pairs than
// a block has goes on with the next block's.
// x: (inputs / kChunk, Rows, kChunk)
template <typename Weight, int Rows, int Pairs>
PEARL_INLINE void add_products(const Blocks<Weight>& blocks, const float* x, int64_t block, int p, int64_t begin,
                               int64_t end, Float (&sums)[Rows][2 * Pairs]) {
  using Stored = typename Weight::Stored;
  constexpr int kLineWeights = kLine / sizeof(Stored), kLines = kChunk * kBlockOutputs / kLineWeights;  // of a chunk
  constexpr int kBlocks = std::max(1, Pairs / kBlockPairs), kOfBlock = Pairs / kBlocks;
  const Stored* weights = blocks.weights + block * blocks.stride;
  // is_alone: its weights share no words
  const auto step = [&](int64_t k, int i, const Stored* next, int64_t apart, bool is_alone) {
    Float values[2 * Pairs];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      for (int line = i * kLines / kChunk; line < (i + 1) * kLines / kChunk; ++line) {
        fetch(next + b * blocks.stride + line % kStreams * apart + line / kStreams * kLineWeights);
      }
      const Stored* weight = weights + b * blocks.stride + (k + i) * kBlockOutputs;
#pragma GCC unroll 4
      for (int n = b * kOfBlock; n < (b + 1) * kOfBlock; ++n) {
        const int pair = p + n % kOfBlock;
        if constexpr (std::is_same_v<Weight, BFloat16>) {
          if (!is_alone) {
            load_pair_of_words(weight - i % 2 * kBlockOutputs, i % 2, pair, values[2 * n], values[2 * n + 1]);
            continue;
          }
        }
        load_pair<Weight>(weight, pair, values[2 * n], values[2 * n + 1]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const Float value = broadcast(x[k * Rows + r * kChunk + i]);
#pragma GCC unroll 8
      for (int n = 0; n < 2 * Pairs; ++n) sums[r][n] = fma(value, values[n], sums[r][n]);
    }
  };
  // Fetched meanwhile is what comes so many inputs later, of these outputs or of the next tile's. If a tile is one block,
  // there is time to fetch all of the next block, from several places at once, which is faster.
  const int64_t lead = std::min<int64_t>(kAhead / (kBlockOutputs * sizeof(Stored)), blocks.inputs);
  const int64_t near = lead * kBlockOutputs, far = kBlocks * blocks.stride + (lead - blocks.inputs) * kBlockOutputs;
  const bool fetches_next = kBlocks == 1 && !(blocks.end && (block + 1) * kBlockOutputs >= blocks.outputs);
  const bool fetches_both = kBlocks == 1 && blocks.begin && block == 0;
  constexpr int64_t kPlace = kLines / kStreams * kLineWeights;
  const int64_t apart = fetches_next ? blocks.inputs / kChunk * kPlace : kPlace;
  int64_t k = begin;
  for (; k + kChunk <= end; k += kChunk) {
    const int64_t ahead = k * kBlockOutputs + (k + lead < blocks.inputs ? near : far);
    if (fetches_both) {
      for (int line = 0; line < kLines; ++line) fetch(weights + ahead + line * kLineWeights);
    }
    const Stored* next = weights + (fetches_next ? blocks.stride + k / kChunk * kPlace : ahead);
#pragma GCC unroll 4
    for (int i = 0; i < kChunk; ++i) step(k, i, next, apart, false);
  }
  for (int i = 0; k + i < end; ++i) step(k, i, weights, 0, i % 2 == 0 && k + i + 1 == end);
}

// The outputs of a block, or of as many as a tile spans.
template <typename Weight, int Rows, int Pairs>
void multiply_tile(const LinearLayer& layer, const Part& part, const Blocks<Weight>& blocks, const float* x,
                   int64_t row, int64_t block) {
  constexpr int kSteps = std::max(1, kBlockPairs / Pairs);  // tiles in a block: they take turns at its weights
  const int64_t turn = kSteps == 1 ? blocks.inputs : kTurn;
  Float sums[kSteps][Rows][2 * Pairs] = {};
  for (int64_t k = 0; k < blocks.inputs; k += turn) {
    for (int s = 0; s < kSteps; ++s) {
      Float kept[Rows][2 * Pairs];
      std::memcpy(kept, sums[s], sizeof kept);
      add_products<Weight, Rows, Pairs>(blocks, x, block, s * Pairs, k, std::min(k + turn, blocks.inputs), kept);
      std::memcpy(sums[s], kept, sizeof kept);
    }
  }
  for (int s = 0; s < kSteps; ++s) {
    for (int n = 0; n < 2 * Pairs; ++n) {
      const int pair = s * Pairs + n / 2;
      const int64_t output = (block + pair / kBlockPairs) * kBlockOutputs + n % 2 * kHalf + pair % kBlockPairs * kLanes;
      if (output >= blocks.outputs) continue;
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        finish(layer, part, blocks.first_output + output, row + r, sums[s][r][n], blocks.outputs - output);
      }
    }
  }
}

// The rows as `add_products` reads them.
template <int Rows>
void put_together(const float* x, int64_t stride, int64_t count, float* together) {
  int64_t k = 0;
  for (; k + kChunk <= count; k += kChunk, together += Rows * kChunk) {
    for (int r = 0; r < Rows; ++r) {
      for (int i = 0; i < kChunk; i += kLanes) {
        store_float32(together + r * kChunk + i, load_float32(x + r * stride + k + i));
      }
    }
  }
  for (int r = 0; r < Rows; ++r) std::copy_n(x + r * stride + k, count - k, together + r * kChunk);
}

template <typename Weight, int Rows>
void multiply_rows(const LinearArgs& args, const LinearLayer& layer, const Part& part, const Blocks<Weight>& blocks,
                   int rows, int64_t row) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return multiply_rows<Weight, Rows - 1>(args, layer, part, blocks, rows, row);
  }
  const float* x = args.x + row * args.x_stride + part.begin;
  alignas(64) float together[Rows > 1 ? Rows * kPart : 1];
  if constexpr (Rows > 1) {
    put_together<Rows>(x, args.x_stride, blocks.inputs, together);
    x = together;
  }
  constexpr int kPairs = kTilePairs<Rows>, kTileBlocks = std::max(1, kPairs / kBlockPairs);
  const int64_t count = (blocks.outputs + kBlockOutputs - 1) / kBlockOutputs;
  int64_t block = 0;
  for (; block + kTileBlocks <= count; block += kTileBlocks) {
    multiply_tile<Weight, Rows, kPairs>(layer, part, blocks, x, row, block);
  }
  if constexpr (kTileBlocks > 1) {
    for (; block < count; ++block) multiply_tile<Weight, Rows, 1>(layer, part, blocks, x, row, block);
  }
}

template <typename Weight>
void multiply(const LinearArgs& args, const LinearLayer& layer, const Part& part, const Blocks<Weight>& blocks) {
  const int64_t tiles = (args.rows + kTileRows - 1) / kTileRows;
  for (int64_t t = 0; t < tiles; ++t) {  // of nearly equal size
    const int64_t row = args.rows * t / tiles;
    const int rows = static_cast<int>(args.rows * (t + 1) / tiles - row);
    multiply_rows<Weight, kTileRows>(args, layer, part, blocks, rows, row);
  }
}

// Of the outputs of whole blocks, `first` ... `last` - 1.
template <typename Weight>
void multiply_blocks(const LinearArgs& args, const LinearLayer& layer, int64_t first, int64_t last) {
  using Stored = typename Weight::Stored;
  const int64_t chunks = (args.inputs + kChunk - 1) / kChunk;
  const int64_t parts = std::max<int64_t>(1, (chunks * kChunk + kPart - 1) / kPart);
  const int64_t block_bytes =
      kBlockOutputs * (layer.packed ? sizeof(Stored) : sizeof(float)) * (args.inputs / parts + 1);
  const int64_t group = std::max<int64_t>(2, kGroup / block_bytes / 2 * 2);
  for (int64_t block = first; block < last; block += group) {
    const int64_t count = std::min(group, last - block), output = block * kBlockOutputs;
    const int64_t outputs = std::min(count * kBlockOutputs, layer.outputs - output);
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t end = std::min(args.inputs, chunks * (p + 1) / parts * kChunk);
      const Part part = {chunks * p / parts * kChunk, end, p == 0, p == parts - 1};
      const int64_t inputs = part.end - part.begin, stride = inputs * kBlockOutputs;
      if (layer.packed) {
        const auto* weights = static_cast<const Stored*>(layer.weight) + output * args.inputs;
        multiply<Weight>(args, layer, part,
                         {weights + part.begin * kBlockOutputs, args.inputs * kBlockOutputs, inputs, output, outputs,
                          block == first, block + group >= last});
        continue;
      }
      auto* packed = static_cast<float*>(scratch(Scratch::kLinear, count * stride * sizeof(float)));
      const auto* rows = static_cast<const Stored*>(layer.weight) + output * layer.weight_stride + part.begin;
      const int64_t between = kBlockOutputs * layer.weight_stride;
      for (int64_t b = 0; b < count; ++b) {
        transpose<Weight, kBlockOutputs>(rows + b * between, layer.weight_stride * sizeof(Stored),
                                         outputs - b * kBlockOutputs, inputs, between * sizeof(Stored),
                                         packed + b * stride);
      }
      multiply<Float32>(args, layer, part, {packed, stride, inputs, output, outputs, true, true});
    }
  }
}

int64_t blocks_of(const LinearLayer& layer) { return (layer.outputs + kBlockOutputs - 1) / kBlockOutputs; }

int64_t pairs_of(const LinearLayer& layer) { return (blocks_of(layer) + 1) / 2; }

struct Job {
  const LinearArgs& args;
  const SplitRows& split;
};

// Threads share out pairs of blocks, as tiles take them. Those of all layers are counted through, one layer after the
// other.
void all_between(void* context, int64_t begin, int64_t end) {
  const auto& [args, split] = *static_cast<const Job*>(context);
  int64_t first = 0;
  for (int64_t i = 0; i < args.count; ++i) {
    const LinearLayer& layer = args.layers[i];
    const int64_t from = 2 * std::max<int64_t>(begin - first, 0), to = std::min(2 * (end - first), blocks_of(layer));
    first += pairs_of(layer);
    if (from >= to) continue;
    switch (layer.type) {
      case WeightType::kFloat32: multiply_blocks<Float32>(args, layer, from, to); break;
      case WeightType::kBFloat16:
        if (split.values) {
          multiply_by_tiles(split, layer, from, to);
        } else {
          multiply_blocks<BFloat16>(args, layer, from, to);
        }
        break;
      case WeightType::kFloat16: multiply_blocks<Float16>(args, layer, from, to); break;
      case WeightType::kInt8: multiply_blocks<Int8>(args, layer, from, to); break;
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
  int64_t pairs = 0, bytes = 0;
  for (int64_t i = 0; i < args.count; ++i) {
    pairs += pairs_of(args.layers[i]);
    bytes += args.layers[i].outputs * args.inputs * size_of(args.layers[i].type);
  }
  const int64_t pieces = std::min<int64_t>(2 * args.threads, bytes / kPieceBytes);
  const SplitRows split = split_rows(args);
  Job job = {args, split};
  parallel_for(pairs, pieces, args.threads, all_between, &job);
}

}  // namespace pearl::PEARL_SIMD
