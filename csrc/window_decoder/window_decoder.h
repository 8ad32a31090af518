#pragma once

#include <cstdint>

#include "window_layer/window_layer.h"

namespace pearl {

// A whole decoder over a window: rows of the embedding, through all layers, a norm, and the head of the last rows.
struct DecoderArgs {
  const int64_t* tokens;  // (batch, width): others than [0, vocab) are taken to the nearer end
  const void* embedding;  // (vocab, size), contiguous
  DType embedding_type;
  int64_t vocab;
  // What all layers have in common: all but x, out and weights. Its caches are the first layer's; its angles are those of
  // every position, (positions, head_dim), not of the window's.
  LayerArgs each;
  int64_t positions;  // those past the last have its angles
  const LayerWeights* layers;
  int64_t count;                           // of layers
  int64_t k_layer_stride, v_layer_stride;  // from one layer's cache to the next, in elements
  const float* norm;                       // (size,)
  float eps;
  LinearLayer head;        // its `out`: (batch, keep, outputs)
  int64_t keep;            // rows of each sequence, the last ones, that go through norm and head: 0 ... width
  const int64_t* lengths;  // (batch,), how many rows each sequence has, keep ... width, the first ones; null: width
};

}  // namespace pearl
