#pragma once

#ifdef __AMX_BF16__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/fetch.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/transpose.h"
#include "window_linear/finish.h"

// Rows against bfloat16 weights where the processor multiplies whole tiles of such (AMX): up to kTile rows of kTileInputs,
// times the weights of so many inputs and kTile outputs. A row's numbers are split into three of bfloat16 each, which add
// up to all 24 bits, so that products are exact and sums float32. A window of kTile rows then takes hardly longer than one
// row. Numbers too small to be normal count as 0, and one that is not finite makes a NaN.
namespace pearl::PEARL_SIMD {

constexpr int64_t kPieceBytes = 64 << 10;  // of weights or rows: less is not worth waking a thread for

constexpr int kTile = 16;
constexpr int kTileInputs = 32;
constexpr int kSplits = 3;
constexpr int64_t kTileLead = 64;  // inputs whose weights are fetched ahead, where there is one tile of rows

// (tiles, inputs / kTileInputs, kSplits, height, kTileInputs) of bfloat16: tile after tile of `height` rows, zeros after
// the last row.
struct SplitRows {
  uint16_t* values;  // null where tiles are not used
  int64_t rows, inputs, tiles, height;

  int64_t tile_size() const { return kSplits * height * inputs; }
};

#ifdef __AMX_BF16__

// Whether tiles are used depends on the inputs' number and the weights' type alone, so that a row's result does.
static bool uses_tiles(const LinearArgs& args) {
  const auto is_bfloat16 = [](const LinearLayer& layer) { return layer.type == WeightType::kBFloat16; };
  return args.rows > 0 && args.inputs > 0 && args.inputs % kTileInputs == 0 &&
         std::any_of(args.layers, args.layers + args.count, is_bfloat16);
}

struct SplitJob {
  const LinearArgs& args;
  const SplitRows& split;
};

static void split_tiles(void* context, int64_t begin, int64_t end) {
  typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
  const auto& [args, split] = *static_cast<const SplitJob*>(context);
  const int64_t part = split.height * kTileInputs;
  for (int64_t t = begin; t < end; ++t) {
    uint16_t* out = split.values + t * split.tile_size();
    const int64_t row = t * split.height;
    for (int64_t k = 0; k < split.inputs; k += kTileInputs, out += kSplits * part) {
      for (int64_t r = 0; r < split.height; ++r) {
        const float* x = args.x + (row + r) * args.x_stride + k;
        for (int64_t i = 0; i < kTileInputs; i += kLanes) {
          Float rest = row + r < split.rows ? load_float32(x + i) : Float{};
          for (int s = 0; s < kSplits; ++s) {
            const Word bits = (Word)rest & 0xffff0000u;
            const Halves halves = __builtin_convertvector(bits >> 16, Halves);
            std::memcpy(out + s * part + r * kTileInputs + i, &halves, sizeof halves);
            rest -= (Float)bits;
          }
        }
      }
    }
  }
}

// In memory of this thread's, which the next call writes again.
static SplitRows split_rows(const LinearArgs& args) {
  if (!uses_tiles(args)) return {};
  const int64_t tiles = (args.rows + kTile - 1) / kTile;
  SplitRows split = {nullptr, args.rows, args.inputs, tiles, (args.rows + tiles - 1) / tiles};
  const int64_t bytes = tiles * split.tile_size() * sizeof(uint16_t);
  split.values = static_cast<uint16_t*>(scratch(Scratch::kSplit, bytes));
  SplitJob job = {args, split};
  parallel_for(tiles, bytes / kPieceBytes, args.threads, split_tiles, &job);
  return split;
}

// Compilers do not know what memory the instructions for tiles read: after this, what was written is there.
static PEARL_INLINE void settle(const void* p) { asm volatile("" : : "r"(p) : "memory"); }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0-3 are sums, 4-6 the parts of the rows, and 7 is weights.
class Tiles {
 public:
  explicit Tiles(int64_t height) {
    TileConfig config;
    std::fill_n(config.row_bytes, 8, 64);
    std::fill_n(config.rows, 7, static_cast<uint8_t>(height));
    config.rows[7] = kTile;
    settle(&config);
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

// All rows with the weights of two blocks of outputs, or of one that is named twice. Weights that come later are fetched
// meanwhile: for the only tile of rows those that it needs soon; where there are more tiles each fetches a part of the
// next two blocks, or the first would wait for memory and the others never.
template <bool kOneTile>
void multiply_pair(const SplitRows& split, const LinearLayer& layer, const uint16_t* first, const uint16_t* second,
                   int64_t output) {
  alignas(64) float sums[4][kTile][kTile];
  settle(first);
  for (int64_t t = 0; t < split.tiles; ++t) {
    const uint16_t* rows = split.values + t * split.tile_size();
    const int64_t part = split.height * kTileInputs;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < split.inputs; k += kTileInputs, rows += kSplits * part) {
      _tile_loadd(4, rows, 2 * kTileInputs);
      _tile_loadd(5, rows + part, 2 * kTileInputs);
      _tile_loadd(6, rows + 2 * part, 2 * kTileInputs);
      const int64_t lead = kOneTile ? kTileLead : 2 * split.inputs - k + (t * split.inputs + k) / split.tiles;
      const int64_t later = k + lead + (kOneTile && k + lead >= split.inputs ? split.inputs : 0);
      const auto fetch_later = [&](const uint16_t* block, int half) {
        if constexpr (kOneTile) {
          for (int line = 0; line < kTile; ++line) fetch_near(block + (later + half * kTile + line) * kBlockOutputs);
        } else {
          const int64_t count = kTile / split.tiles + 1;
          for (int64_t line = 0; line < count; ++line) fetch(block + (later + half * count + line) * kBlockOutputs);
        }
      };
#define PEARL_ADD_PRODUCTS(sum, block, half)                                           \
  fetch_later(block, half);                                                            \
  _tile_loadd(7, (block) + k * kBlockOutputs + (half) * 2 * kTile, 4 * kBlockOutputs); \
  _tile_dpbf16ps(sum, 4, 7);                                                           \
  _tile_dpbf16ps(sum, 5, 7);                                                           \
  _tile_dpbf16ps(sum, 6, 7)
      PEARL_ADD_PRODUCTS(0, first, 0);
      PEARL_ADD_PRODUCTS(1, first, 1);
      PEARL_ADD_PRODUCTS(2, second, 0);
      PEARL_ADD_PRODUCTS(3, second, 1);
#undef PEARL_ADD_PRODUCTS
    }
    _tile_stored(0, sums[0], 4 * kTile);
    _tile_stored(1, sums[1], 4 * kTile);
    _tile_stored(2, sums[2], 4 * kTile);
    _tile_stored(3, sums[3], 4 * kTile);
    const int64_t row = t * split.height, count = std::min(split.height, split.rows - row);
    const int64_t outputs = std::min(layer.outputs - output, (first == second ? 1 : 2) * int64_t{kBlockOutputs});
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t n = 0; n < outputs; n += kLanes) {
        finish(layer, {0, split.inputs, true, true}, output + n, row + r, load_float32(&sums[n / kTile][r][n % kTile]),
               outputs - n);
      }
    }
  }
}

// Of the outputs of whole blocks, `begin` ... `end` - 1.
static void multiply_by_tiles(const SplitRows& split, const LinearLayer& layer, int64_t begin, int64_t end) {
  const Tiles tiles(split.height);
  const int64_t block_size = split.inputs * kBlockOutputs;
  for (int64_t block = begin; block < end; block += 2) {
    const int64_t count = std::min<int64_t>(2, end - block), output = block * kBlockOutputs;
    const auto* weights = static_cast<const uint16_t*>(layer.weight);
    if (layer.packed) {
      weights += block * block_size;
    } else {
      // Two inputs' weights are moved as if they were one float32.
      auto* words = static_cast<float*>(scratch(Scratch::kLinear, count * block_size * sizeof(uint16_t)));
      for (int64_t b = 0; b < count; ++b) {
        const int64_t first = output + b * kBlockOutputs, stride = layer.weight_stride * sizeof(uint16_t);
        transpose<Float32, kBlockOutputs>(weights + first * layer.weight_stride, stride, layer.outputs - first,
                                          split.inputs / 2, kBlockOutputs * stride, words + b * block_size / 2);
      }
      weights = reinterpret_cast<const uint16_t*>(words);
    }
    const uint16_t* second = weights + (count - 1) * block_size;
    if (split.tiles == 1) {
      if (block == begin) {
        for (int64_t k = 0; k < kTileLead; ++k) {
          fetch_near(weights + k * kBlockOutputs);
          fetch_near(second + k * kBlockOutputs);
        }
      }
      multiply_pair<true>(split, layer, weights, second, output);
    } else {
      multiply_pair<false>(split, layer, weights, second, output);
    }
  }
}

#else

static SplitRows split_rows(const LinearArgs&) { return {}; }
static void multiply_by_tiles(const SplitRows&, const LinearLayer&, int64_t, int64_t) {}

#endif

}  // namespace pearl::PEARL_SIMD
