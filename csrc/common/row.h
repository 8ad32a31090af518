#pragma once

#include <cstring>

#include "common/half.h"
#include "common/simd/simd.h"
#include "common/types.h"

namespace pearl::PEARL_SIMD {

constexpr float kInfinity = __builtin_inff();

// Rows are walked in chunks (one block of noise each) and blocks (one vector of maxima each).
constexpr int kChunkVectors = 4;
constexpr int kChunk = kChunkVectors * kLanes;
constexpr int kBlockChunks = 4;
constexpr int kBlock = kBlockChunks * kChunk;

struct Chunk {
  Float x[kChunkVectors];
};

// One row of logits, converted to float32 as it is read.
struct Row {
  const void* data;
  DType dtype;
  int64_t size;

  PEARL_INLINE float at(int64_t i) const {
    switch (dtype) {
      case DType::kFloat32: return static_cast<const float*>(data)[i];
      case DType::kBFloat16: return bfloat16_to_float(static_cast<const uint16_t*>(data)[i]);
      default: return float16_to_float(static_cast<const uint16_t*>(data)[i]);
    }
  }

  PEARL_INLINE int64_t blocks() const { return (size + kBlock - 1) / kBlock; }
};

static PEARL_INLINE Row row_of(const LogitsView& view, int64_t batch, int64_t row) {
  const int64_t offset = batch * view.batch_stride + row * view.row_stride;
  const int64_t bytes = view.dtype == DType::kFloat32 ? 4 : 2;
  return {static_cast<const char*>(view.data) + offset * bytes, view.dtype, view.vocab};
}

static PEARL_INLINE Chunk load_whole_chunk(const Row& row, int64_t begin) {
  Chunk chunk;
  switch (row.dtype) {
    case DType::kFloat32: {
      const float* p = static_cast<const float*>(row.data) + begin;
      for (int v = 0; v < kChunkVectors; ++v) chunk.x[v] = load_float32(p + v * kLanes);
      break;
    }
    case DType::kBFloat16: {
      const uint16_t* p = static_cast<const uint16_t*>(row.data) + begin;
      for (int v = 0; v < kChunkVectors; ++v) chunk.x[v] = load_bfloat16(p + v * kLanes);
      break;
    }
    default: {
      const uint16_t* p = static_cast<const uint16_t*>(row.data) + begin;
      for (int v = 0; v < kChunkVectors; ++v) chunk.x[v] = load_float16(p + v * kLanes);
    }
  }
  return chunk;
}

static PEARL_INLINE Chunk chunk_from(const float (&values)[kChunk]) {
  Chunk chunk;
  for (int v = 0; v < kChunkVectors; ++v) chunk.x[v] = load_float32(values + v * kLanes);
  return chunk;
}

// Out of line: at most once per sweep.
static __attribute__((noinline)) Chunk load_last_chunk(const Row& row, int64_t begin) {
  float values[kChunk];
  for (int i = 0; i < kChunk; ++i) values[i] = begin + i < row.size ? row.at(begin + i) : -kInfinity;
  return chunk_from(values);
}

// The logits of ids [begin, begin + kChunk); -inf past the end of the row.
static PEARL_INLINE Chunk load_chunk(const Row& row, int64_t begin) {
  return begin + kChunk <= row.size ? load_whole_chunk(row, begin) : load_last_chunk(row, begin);
}

// The same logits in any order, for sweeps that do not care: bfloat16 pairs come apart more cheaply than in order.
static PEARL_INLINE Chunk load_chunk_unordered(const Row& row, int64_t begin) {
  if (row.dtype != DType::kBFloat16 || begin + kChunk > row.size) return load_chunk(row, begin);
  const uint16_t* p = static_cast<const uint16_t*>(row.data) + begin;
  Chunk chunk;
  for (int v = 0; v < kChunkVectors; v += 2) {
    Word pairs;
    std::memcpy(&pairs, p + v * kLanes, sizeof pairs);
    chunk.x[v] = (Float)(pairs << 16);
    chunk.x[v + 1] = (Float)(pairs & 0xffff0000u);
  }
  return chunk;
}

}  // namespace pearl::PEARL_SIMD
