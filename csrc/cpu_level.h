#pragma once

#include <cstddef>

#include "advance/advance.h"
#include "sample/sample.h"
#include "verify/verify.h"
#include "window_attention/window_attention.h"
#include "window_decoder/window_decoder.h"
#include "window_layer/window_layer.h"
#include "window_linear/window_linear.h"
#include "window_norm/window_norm.h"

// The CPU kernels of one SIMD level. Their sources are compiled once per level, each time into the namespace that
// PEARL_SIMD names. read_bytes is a checksum of whole vectors of memory: the cost of reading it once.
#define PEARL_DECLARE_LEVEL(level)                       \
  namespace pearl::level {                               \
  void sample(const SampleArgs& args, int threads);      \
  void verify(const VerifyArgs& args, int threads);      \
  void advance(const AdvanceArgs& args, int threads);    \
  void window_linear(const LinearArgs& args);            \
  void window_attention(const AttentionArgs& args);      \
  void window_norm(const NormArgs& args);                \
  void window_layer(const LayerArgs& args);              \
  void window_decoder(const DecoderArgs& args);          \
  float read_bytes(const void* data, std::size_t bytes); \
  }

#ifdef PEARL_SIMD
PEARL_DECLARE_LEVEL(PEARL_SIMD)
#endif
