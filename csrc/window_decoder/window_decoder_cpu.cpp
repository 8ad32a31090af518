#include "window_decoder/window_decoder.h"

#include <algorithm>
#include <cstring>

#include "common/scratch.h"
#include "common/stored.h"
#include "cpu_level.h"

namespace pearl::PEARL_SIMD {
namespace {

template <typename Kept>
void embed(const DecoderArgs& args, int64_t rows, float* x) {
  const int64_t size = args.each.size;
  const auto* table = static_cast<const typename Kept::Stored*>(args.embedding);
  for (int64_t r = 0; r < rows; ++r) {
    const auto* row = table + std::clamp<int64_t>(args.tokens[r], 0, args.vocab - 1) * size;
    for (int64_t i = 0; i < size; ++i) x[r * size + i] = Kept::value(row[i]);
  }
}

void embed(const DecoderArgs& args, int64_t rows, float* x) {
  switch (args.embedding_type) {
    case DType::kFloat32: return embed<Float32>(args, rows, x);
    case DType::kBFloat16: return embed<BFloat16>(args, rows, x);
    case DType::kFloat16: return embed<Float16>(args, rows, x);
  }
}

// The angles of the window's positions, (batch, width, head_dim).
void look_up(const DecoderArgs& args, const float* table, float* out) {
  const LayerArgs& each = args.each;
  for (int64_t b = 0; b < each.batch; ++b) {
    const int64_t start = std::clamp<int64_t>(each.seq_lens[b], 0, each.capacity - each.width);
    for (int64_t i = 0; i < each.width; ++i, out += each.head_dim) {
      const int64_t position = std::min(start + i, args.positions - 1);
      std::memcpy(out, table + position * each.head_dim, each.head_dim * sizeof(float));
    }
  }
}

}  // namespace

void window_decoder(const DecoderArgs& args) {
  const int64_t batch = args.each.batch, width = args.each.width, size = args.each.size;
  const int64_t rows = batch * width, kept = batch * args.keep;
  const int64_t angles = rows * args.each.head_dim, floats = (rows + kept) * size + 2 * angles;
  float* x = static_cast<float*>(scratch(Scratch::kDecoder, floats * sizeof(float)));
  float *last = x + rows * size, *cos = last + kept * size, *sin = cos + angles;
  embed(args, rows, x);
  look_up(args, args.each.cos, cos);
  look_up(args, args.each.sin, sin);
  LayerArgs layer = args.each;
  layer.x = layer.out = x;
  layer.cos = cos;
  layer.sin = sin;
  layer.rotary_stride = args.each.width * args.each.head_dim;
  for (int64_t i = 0; i < args.count; ++i) {
    layer.weights = args.layers[i];
    layer.k_cache.data = static_cast<float*>(args.each.k_cache.data) + i * args.k_layer_stride;
    layer.v_cache.data = static_cast<float*>(args.each.v_cache.data) + i * args.v_layer_stride;
    if (i + 1 == args.count && kept == 0) layer.out = nullptr;
    window_layer(layer);
  }
  if (kept == 0) return;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t end = b * width + (args.lengths ? args.lengths[b] : width);
    std::memcpy(last + b * args.keep * size, x + (end - args.keep) * size, args.keep * size * sizeof(float));
  }
  window_norm({last, kept, size, args.norm, 0.0f, args.eps, last});
  window_linear({last, kept, size, size, &args.head, 1, args.each.threads});
}

}  // namespace pearl::PEARL_SIMD
