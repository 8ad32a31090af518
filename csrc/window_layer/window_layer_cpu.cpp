#include "window_layer/window_layer.h"

#include <initializer_list>

#include "common/scratch.h"
#include "common/simd/simd.h"
#include "cpu_level.h"

// What the parts do to a row depends on that row alone, so the whole does too.
namespace pearl::PEARL_SIMD {
namespace {

// Room for the rows between the parts; each piece may be written a vector past its end.
class Workspace {
 public:
  explicit Workspace(int64_t floats, int64_t pieces)
      : free_(static_cast<float*>(scratch(Scratch::kLayer, (floats + 2 * pieces * kLanes) * sizeof(float)))) {}

  float* take(int64_t floats) {
    float* piece = free_;
    free_ += (floats + 2 * kLanes - 1) / kLanes * kLanes;
    return piece;
  }

 private:
  float* free_;
};

struct Product {
  LinearLayer layer;
  float* out;
};

void multiply(const LayerArgs& args, const float* x, int64_t inputs, std::initializer_list<Product> products) {
  LinearLayer layers[3];
  int64_t count = 0;
  for (const Product& product : products) {
    layers[count] = product.layer;
    layers[count++].out = product.out;
  }
  window_linear({x, args.batch * args.width, inputs, inputs, layers, count, args.threads});
}

// Pairs (i, i + half) of each head turn by the angles of its position.
void rotate(const LayerArgs& args, float* states, int64_t heads) {
  const int64_t half = args.head_dim / 2;
  for (int64_t b = 0; b < args.batch; ++b) {
    for (int64_t i = 0; i < args.width; ++i) {
      const float* cos = args.cos + b * args.rotary_stride + i * args.head_dim;
      const float* sin = args.sin + b * args.rotary_stride + i * args.head_dim;
      for (int64_t h = 0; h < heads; ++h, states += args.head_dim) {
        for (int64_t d = 0; d < half; ++d) {
          const float first = states[d], second = states[d + half];
          states[d] = first * cos[d] - second * sin[d];
          states[d + half] = second * cos[d + half] + first * sin[d + half];
        }
      }
    }
  }
}

void add(const float* x, const float* y, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = x[i] + y[i];
}

// gates = silu(gates) * x, in whole vectors.
void gate(float* gates, const float* x, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const Float g = load_float32(gates + i);
    const Float power = exp(min(broadcast(87.0f), max(broadcast(-87.0f), -g)));
    store_float32(gates + i, g / (power + 1.0f) * load_float32(x + i));
  }
}

HeadsView by_rows(float* states, const LayerArgs& args, int64_t heads) {
  return {states, args.width * heads * args.head_dim, args.head_dim, heads * args.head_dim};
}

}  // namespace

void window_layer(const LayerArgs& args) {
  const LayerWeights& w = args.weights;
  const int64_t rows = args.batch * args.width, all = rows * args.size;
  const int64_t of_q = rows * args.heads * args.head_dim, of_k = rows * args.kv_heads * args.head_dim;
  Workspace workspace(2 * all + 2 * of_q + 2 * of_k + 2 * rows * args.inner, 8);
  float *normed = workspace.take(all), *added = workspace.take(all);
  float *q = workspace.take(of_q), *attended = workspace.take(of_q);
  float *k = workspace.take(of_k), *v = workspace.take(of_k);
  float *gates = workspace.take(rows * args.inner), *ups = workspace.take(rows * args.inner);

  window_norm({args.x, rows, args.size, w.attention_norm, 0.0f, w.eps, normed});
  if (args.out) {
    multiply(args, normed, args.size, {{w.q, q}, {w.k, k}, {w.v, v}});
    if (w.q_norm) window_norm({q, rows * args.heads, args.head_dim, w.q_norm, 0.0f, w.eps, q});
    rotate(args, q, args.heads);
  } else {
    multiply(args, normed, args.size, {{w.k, k}, {w.v, v}});
    attended = nullptr;
  }
  if (w.k_norm) window_norm({k, rows * args.kv_heads, args.head_dim, w.k_norm, 0.0f, w.eps, k});
  rotate(args, k, args.kv_heads);
  window_attention({DType::kFloat32, args.batch, args.width, args.heads, args.kv_heads, args.head_dim, args.capacity,
                    by_rows(q, args, args.heads), args.k_cache, args.v_cache, by_rows(k, args, args.kv_heads),
                    by_rows(v, args, args.kv_heads), args.seq_lens, args.scale, 0, 0.0f, attended, args.threads});
  if (!args.out) return;
  multiply(args, attended, args.heads * args.head_dim, {{w.output, added}});
  add(args.x, added, all, args.out);

  window_norm({args.out, rows, args.size, w.mlp_norm, 0.0f, w.eps, normed});
  multiply(args, normed, args.size, {{w.gate, gates}, {w.up, ups}});
  gate(gates, ups, rows * args.inner);
  multiply(args, gates, args.inner, {{w.down, added}});
  add(args.out, added, all, args.out);
}

}  // namespace pearl::PEARL_SIMD
