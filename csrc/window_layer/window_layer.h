#pragma once

#include <cstdint>

#include "window_attention/window_attention.h"
#include "window_linear/window_linear.h"

namespace pearl {

struct LayerWeights {
  const float *attention_norm, *mlp_norm;       // (size,)
  const float *q_norm, *k_norm;                 // (head_dim,), or null
  float eps;                                    // of all norms
  LinearLayer q, k, v, output, gate, up, down;  // their `out` is of no meaning
};

// One decoder layer over a window, with h = x + attention(norm(x)):
//   out = h + down(silu(gate(norm(h))) * up(norm(h)))
// Queries and keys are normed head by head if there are norms for that, then rotated by halves. Keys and values are
// appended to the cache at seq_lens. Rows are contiguous, and float32 like the cache.
struct LayerArgs {
  int64_t batch, width, size, heads, kv_heads, head_dim, inner, capacity;
  const float* x;  // (batch, width, size)
  LayerWeights weights;
  const float *cos, *sin;  // (width, head_dim) of each batch row
  int64_t rotary_stride;   // between batch rows; 0: all have the same
  HeadsView k_cache, v_cache;
  const int64_t* seq_lens;  // (batch,)
  float scale;
  float* out;  // (batch, width, size); may be x. Null: nothing is wanted but the cache's new entries
  int threads;
};

}  // namespace pearl
