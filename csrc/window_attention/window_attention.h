#pragma once

#include <cstdint>

#include "common/types.h"

namespace pearl {

// Vectors of head_dim contiguous elements, one for each (batch row, head, position). Strides count elements.
struct HeadsView {
  void* data;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t position_stride;
};

// Appends `width` entries to every batch row's cache at seq_lens, and attends from their positions to that cache.
struct AttentionArgs {
  DType dtype;  // of all tensors
  int64_t batch, width, heads, kv_heads, head_dim, capacity;
  HeadsView q, k_cache, v_cache;
  HeadsView k_new, v_new;   // data null: the cache has the new entries already
  const int64_t* seq_lens;  // (batch,), in [0, capacity - width]: others are taken to the nearer end
  float scale;
  int64_t window;  // positions a query sees; 0: all
  float softcap;   // 0: none
  void* out;       // (batch, width, heads, head_dim), contiguous; null: append only
  int threads;
};

}  // namespace pearl
