#include "window_layer/window_layer.h"

#include <initializer_list>

#include "common/parallel.h"
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

constexpr int64_t kPieceFloats = 16 << 10;  // less is not worth waking a thread for

// Calls work(begin, end) on pieces of [0, count), of so many floats each, by as many threads as they are worth.
template <typename Work>
void by_pieces(int64_t count, int64_t floats, int threads, Work work) {
  const auto piece = [](void* context, int64_t begin, int64_t end) { (*static_cast<Work*>(context))(begin, end); };
  parallel_for(count, count * floats / kPieceFloats, threads, piece, &work);
}

void normalize(const LayerArgs& args, const float* x, const float* weight, int64_t size, int64_t begin, int64_t end,
               float* out) {
  window_norm({x + begin * size, end - begin, size, weight, 0.0f, args.weights.eps, out + begin * size});
}

// Norms the heads of rows if there is a norm for that, and turns their pairs (i, i + half) by the angles of the row's
// position.
void place(const LayerArgs& args, float* states, int64_t heads, const float* norm, int64_t begin, int64_t end) {
  if (norm) normalize(args, states, norm, args.head_dim, begin * heads, end * heads, states);
  const int64_t half = args.head_dim / 2;
  states += begin * heads * args.head_dim;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t angles = row / args.width * args.rotary_stride + row % args.width * args.head_dim;
    const float *cos = args.cos + angles, *sin = args.sin + angles;
    for (int64_t h = 0; h < heads; ++h, states += args.head_dim) {
      for (int64_t d = 0; d < half; ++d) {
        const float first = states[d], second = states[d + half];
        states[d] = first * cos[d] - second * sin[d];
        states[d + half] = second * cos[d + half] + first * sin[d + half];
      }
    }
  }
}

void add(const float* x, const float* y, int64_t begin, int64_t end, float* out) {
  for (int64_t i = begin; i < end; ++i) out[i] = x[i] + y[i];
}

// gates = silu(gates) * x
void gate(float* gates, const float* x, int64_t begin, int64_t end) {
  for (int64_t i = begin * kLanes; i < end * kLanes; i += kLanes) {
    const Float g = load_float32(gates + i);
    const Float power = exp(min(broadcast(87.0f), max(broadcast(-87.0f), -g)));
    store_float32(gates + i, g / (power + 1.0f) * load_float32(x + i));
  }
}

HeadsView view(float* states, const LayerArgs& args, int64_t heads) {
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

  const auto by_rows = [&](int64_t floats, auto work) { by_pieces(rows, floats, args.threads, work); };
  by_rows(args.size, [&](int64_t begin, int64_t end) {
    normalize(args, args.x, w.attention_norm, args.size, begin, end, normed);
  });
  if (args.out) {
    multiply(args, normed, args.size, {{w.q, q}, {w.k, k}, {w.v, v}});
  } else {
    multiply(args, normed, args.size, {{w.k, k}, {w.v, v}});
    attended = nullptr;
  }
  by_rows((args.heads + args.kv_heads) * args.head_dim, [&](int64_t begin, int64_t end) {
    if (args.out) place(args, q, args.heads, w.q_norm, begin, end);
    place(args, k, args.kv_heads, w.k_norm, begin, end);
  });
  window_attention({DType::kFloat32, args.batch, args.width, args.heads, args.kv_heads, args.head_dim, args.capacity,
                    view(q, args, args.heads), args.k_cache, args.v_cache, view(k, args, args.kv_heads),
                    view(v, args, args.kv_heads), args.seq_lens, args.scale, 0, 0.0f, attended, args.threads});
  if (!args.out) return;
  multiply(args, attended, args.heads * args.head_dim, {{w.output, added}});
  by_rows(2 * args.size, [&](int64_t begin, int64_t end) {
    add(args.x, added, begin * args.size, end * args.size, args.out);
    normalize(args, args.out, w.mlp_norm, args.size, begin, end, normed);
  });
  multiply(args, normed, args.size, {{w.gate, gates}, {w.up, ups}});
  by_pieces((rows * args.inner + kLanes - 1) / kLanes, kLanes, args.threads,
            [&](int64_t begin, int64_t end) { gate(gates, ups, begin, end); });
  multiply(args, gates, args.inner, {{w.down, added}});
  by_rows(args.size,
          [&](int64_t begin, int64_t end) { add(args.out, added, begin * args.size, end * args.size, args.out); });
}

}  // namespace pearl::PEARL_SIMD
