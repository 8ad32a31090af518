#include "window_attention/window_attention.h"

#include <algorithm>
#include <type_traits>

#include "common/fetch.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "common/stored.h"
#include "common/transpose.h"
#include "cpu_level.h"
#include "window_attention/softmax.h"

// A task is some queries of one key head, which read its entries once: all scores, then the softmax of each query, then
// the sums of values. Each number is summed over its own query's positions, from the first to the last, whatever queries
// are beside it: it does not depend on the batch, the width, the tiles or the number of threads.
namespace pearl::PEARL_SIMD {
namespace {

constexpr int kBlock = 2 * kLanes;                  // positions scored at once
constexpr int kTile = 6;                            // queries; times 2 vectors as many sums as 16 registers hold
constexpr int kVectors = kRegisters >= 32 ? 4 : 2;  // of a value that are summed at once
constexpr int64_t kMostQueries = 32;                // of a task: their scores are kept
constexpr int64_t kTaskProducts = 64 << 10;         // less is not worth waking a thread for

struct Job {
  const AttentionArgs& args;
  int64_t group;
  int64_t parts;  // tasks of one key head
};

// The queries [begin, begin + count) of one key head in one batch row: query n is head n % group of row n / group.
struct Task {
  int64_t batch, kv_head, begin, count;
  int64_t start;                // position of row 0
  int64_t first[kMostQueries];  // position each query looks at first
  int64_t end[kMostQueries];    // and the one after its last
  int64_t low() const { return first[0]; }
  int64_t high() const { return end[count - 1]; }
};

template <typename Kept>
typename Kept::Stored* vector_of(const HeadsView& view, int64_t batch, int64_t head, int64_t position) {
  return static_cast<typename Kept::Stored*>(view.data) + batch * view.batch_stride + head * view.head_stride +
         position * view.position_stride;
}

int64_t start_of(const AttentionArgs& args, int64_t batch) {
  return std::clamp<int64_t>(args.seq_lens[batch], 0, args.capacity - args.width);
}

template <typename Kept>
void append(const AttentionArgs& args, const HeadsView& cache, const HeadsView& added) {
  const auto bytes = args.head_dim * sizeof(typename Kept::Stored);
  for (int64_t b = 0; b < args.batch; ++b) {
    for (int64_t h = 0; h < args.kv_heads; ++h) {
      for (int64_t i = 0; i < args.width; ++i) {
        std::memcpy(vector_of<Kept>(cache, b, h, start_of(args, b) + i), vector_of<Kept>(added, b, h, i), bytes);
      }
    }
  }
}

template <int Queries>
void score_tile(const float* queries, int64_t dim, const float* keys, float scale, float* scores, int64_t stride) {
  Float sums[Queries][2] = {};
  for (int64_t d = 0; d < dim; ++d) {
    const Float low = load_float32(keys + d * kBlock), high = load_float32(keys + d * kBlock + kLanes);
    for (int n = 0; n < Queries; ++n) {
      const Float element = broadcast(queries[n * dim + d]);
      sums[n][0] = fma(element, low, sums[n][0]);
      sums[n][1] = fma(element, high, sums[n][1]);
    }
  }
  for (int n = 0; n < Queries; ++n) {
    store_float32(scores + n * stride, sums[n][0] * scale);
    store_float32(scores + n * stride + kLanes, sums[n][1] * scale);
  }
}

// Adds weights[n][t] * value t to sums[n], for `count` positions t.
template <typename Kept, int Queries, int Vectors>
void sum_tile(const typename Kept::Stored* value, int64_t value_stride, int64_t count, const float* weights,
              int64_t stride, float* sums, int64_t dim) {
  Float kept[Queries][Vectors];
  for (int n = 0; n < Queries; ++n) {
    for (int v = 0; v < Vectors; ++v) kept[n][v] = load_float32(sums + n * dim + v * kLanes);
  }
  for (int64_t t = 0; t < count; ++t, value += value_stride) {
    Float vectors[Vectors];
    for (int v = 0; v < Vectors; ++v) {
      fetch(reinterpret_cast<const char*>(value + v * kLanes) + kAhead);
      vectors[v] = Kept::load(value + v * kLanes);
    }
    for (int n = 0; n < Queries; ++n) {
      const Float weight = broadcast(weights[n * stride + t]);
      for (int v = 0; v < Vectors; ++v) kept[n][v] = fma(weight, vectors[v], kept[n][v]);
    }
  }
  for (int n = 0; n < Queries; ++n) {
    for (int v = 0; v < Vectors; ++v) store_float32(sums + n * dim + v * kLanes, kept[n][v]);
  }
}

template <typename Kept, int Queries>
void sum_values(const typename Kept::Stored* value, int64_t value_stride, int64_t count, const float* weights,
                int64_t stride, float* sums, int64_t dim) {
  int64_t d = 0;
  for (; d + kVectors * kLanes <= dim; d += kVectors * kLanes) {
    sum_tile<Kept, Queries, kVectors>(value + d, value_stride, count, weights, stride, sums + d, dim);
  }
  for (; d + kLanes <= dim; d += kLanes) {
    sum_tile<Kept, Queries, 1>(value + d, value_stride, count, weights, stride, sums + d, dim);
  }
  for (; d < dim; ++d) {
    for (int64_t t = 0; t < count; ++t) {
      const float element = Kept::value(value[t * value_stride + d]);
      for (int n = 0; n < Queries; ++n) sums[n * dim + d] += weights[n * stride + t] * element;
    }
  }
}

template <int Most, typename Run>
void with_constant(int count, Run run) {
  if constexpr (Most > 1) {
    if (count < Most) return with_constant<Most - 1>(count, run);
  }
  run(std::integral_constant<int, Most>{});
}

int64_t tiles_of(int64_t queries) { return (queries + kTile - 1) / kTile; }

// Scores of all queries from task.low() to task.high(), in rows of `stride`.
template <typename Kept>
void score(const AttentionArgs& args, const Task& task, const float* queries, float* keys, float* scores,
           int64_t stride) {
  for (int64_t position = task.low(); position < task.high(); position += kBlock) {
    const auto* key = vector_of<Kept>(args.k_cache, task.batch, task.kv_head, position);
    const int64_t count = std::min<int64_t>(kBlock, task.high() - position);
    transpose<Kept, kBlock>(key, args.k_cache.position_stride * sizeof(*key), count, args.head_dim, kAhead, keys);
    for (int64_t t = 0, tiles = tiles_of(task.count); t < tiles; ++t) {
      const int64_t n = task.count * t / tiles;
      with_constant<kTile>(static_cast<int>(task.count * (t + 1) / tiles - n), [&](auto size) {
        score_tile<decltype(size)::value>(queries + n * args.head_dim, args.head_dim, keys, args.scale,
                                          scores + n * stride + position - task.low(), stride);
      });
    }
  }
}

// The sums of the values that queries n ... n + Queries - 1 look at.
template <typename Kept, int Queries>
void weigh_tile(const AttentionArgs& args, const Task& task, int64_t n, const float* weights, int64_t stride,
                float* sums) {
  const int64_t dim = args.head_dim, last = n + Queries - 1;
  const auto run = [&](auto size, int64_t query, int64_t from, int64_t to) {
    if (from >= to) return;
    const auto* value = vector_of<Kept>(args.v_cache, task.batch, task.kv_head, from);
    sum_values<Kept, decltype(size)::value>(value, args.v_cache.position_stride, to - from,
                                            weights + query * stride + from - task.low(), stride, sums + query * dim,
                                            dim);
  };
  // The positions that all of them look at; before and after those, each has its own.
  const int64_t from = task.first[last], to = std::max(from, task.end[n]);
  constexpr std::integral_constant<int, 1> one;
  for (int64_t query = n; query <= last; ++query) run(one, query, task.first[query], std::min(from, task.end[query]));
  run(std::integral_constant<int, Queries>{}, n, from, task.end[n]);
  for (int64_t query = n; query <= last; ++query) run(one, query, std::max(to, task.first[query]), task.end[query]);
}

Task task_of(const Job& job, int64_t index) {
  const AttentionArgs& args = job.args;
  const int64_t queries = args.width * job.group, part = index % job.parts, head = index / job.parts;
  Task task;
  task.batch = head / args.kv_heads;
  task.kv_head = head % args.kv_heads;
  task.begin = queries * part / job.parts;
  task.count = queries * (part + 1) / job.parts - task.begin;
  task.start = start_of(args, task.batch);
  for (int64_t n = 0; n < task.count; ++n) {
    task.end[n] = task.start + (task.begin + n) / job.group + 1;
    task.first[n] = args.window ? std::max<int64_t>(0, task.end[n] - args.window) : 0;
  }
  return task;
}

template <typename Kept>
void attend(const Job& job, const Task& task) {
  using Stored = typename Kept::Stored;
  const AttentionArgs& args = job.args;
  const int64_t dim = args.head_dim;
  const int64_t stride = (task.high() - task.low() + kBlock - 1) / kBlock * kBlock + kLanes;
  const int64_t floats = dim * kBlock + 2 * task.count * dim + task.count * stride;
  float* keys = static_cast<float*>(scratch(Scratch::kAttention, floats * sizeof(float)));
  float* queries = keys + dim * kBlock;
  float* sums = queries + task.count * dim;
  float* scores = sums + task.count * dim;
  for (int64_t n = 0; n < task.count; ++n) {
    const int64_t query = task.begin + n, head = task.kv_head * job.group + query % job.group;
    const Stored* q = vector_of<Kept>(args.q, task.batch, head, query / job.group);
    for (int64_t d = 0; d < dim; ++d) queries[n * dim + d] = Kept::value(q[d]);
  }
  score<Kept>(args, task, queries, keys, scores, stride);
  float totals[kMostQueries];
  for (int64_t n = 0; n < task.count; ++n) {
    totals[n] = softmax(scores + n * stride + task.first[n] - task.low(), task.end[n] - task.first[n], args.softcap);
  }
  std::fill(sums, scores, 0.0f);
  for (int64_t t = 0, tiles = tiles_of(task.count); t < tiles; ++t) {
    const int64_t n = task.count * t / tiles;
    with_constant<kTile>(static_cast<int>(task.count * (t + 1) / tiles - n), [&](auto size) {
      weigh_tile<Kept, decltype(size)::value>(args, task, n, scores, stride, sums);
    });
  }
  for (int64_t n = 0; n < task.count; ++n) {
    const int64_t query = task.begin + n, head = task.kv_head * job.group + query % job.group;
    Stored* out =
        static_cast<Stored*>(args.out) + ((task.batch * args.width + query / job.group) * args.heads + head) * dim;
    for (int64_t d = 0; d < dim; ++d) out[d] = Kept::stored(sums[n * dim + d] / totals[n]);
  }
}

template <typename Kept>
void tasks_between(void* context, int64_t begin, int64_t end) {
  const Job& job = *static_cast<const Job*>(context);
  for (int64_t index = begin; index < end; ++index) attend<Kept>(job, task_of(job, index));
}

template <typename Kept>
void append_and_attend(const AttentionArgs& args) {
  if (args.k_new.data) {
    append<Kept>(args, args.k_cache, args.k_new);
    append<Kept>(args, args.v_cache, args.v_new);
  }
  if (!args.out || args.batch * args.width == 0) return;
  const int64_t queries = args.width * (args.heads / args.kv_heads), key_heads = args.batch * args.kv_heads;
  int64_t positions = 0;
  for (int64_t b = 0; b < args.batch; ++b) positions += start_of(args, b) + args.width;
  const int64_t products = positions * args.heads * args.width * args.head_dim;
  const int threads = static_cast<int>(std::clamp<int64_t>(products / kTaskProducts, 1, args.threads));
  // Tasks enough for the threads to end together, as long as each has a tile of queries.
  const int64_t wanted = (2 * threads + key_heads - 1) / key_heads;
  const int64_t most = std::max<int64_t>(1, queries / kTile), fewest = (queries + kMostQueries - 1) / kMostQueries;
  Job job{args, args.heads / args.kv_heads, std::max(fewest, threads > 1 ? std::min(wanted, most) : 1)};
  const int64_t tasks = key_heads * job.parts;
  parallel_for(tasks, tasks, threads, tasks_between<Kept>, &job);
}

}  // namespace

void window_attention(const AttentionArgs& args) {
  switch (args.dtype) {
    case DType::kFloat32: return append_and_attend<Float32>(args);
    case DType::kBFloat16: return append_and_attend<BFloat16>(args);
    case DType::kFloat16: return append_and_attend<Float16>(args);
  }
}

}  // namespace pearl::PEARL_SIMD
