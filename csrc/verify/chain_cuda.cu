#include "verify/chain_cuda.h"
#include "verify/in_turn.cuh"

// Three kernels, of which most rules need the first alone: the rows and what follows from them; for `block`, the masses
// of residuals; and the draw from the one residual that counts. Each block takes slices of a row, and the last one to
// be done with a row, or with a request, goes on with it. Where requests are many, in_turn.cuh has another first one.
namespace pearl {
namespace cuda {
namespace {

// Whether the draft's rows are looked at beside the target's: their statistics are wanted, and did not come with them.
__host__ __device__ bool looks_at_drafts(const VerifyArgs& args) {
  const bool by_ratio = args.rule == Rule::kToken || args.rule == Rule::kBlock;
  return by_ratio && args.draft.logits.data != nullptr && args.draft.lse == nullptr;
}

// What row i of a chain's target or draft is looked at for.
__device__ __forceinline__ RowTask task_of(const Job& job, int64_t b, const Chain& chain, int32_t i, bool of_draft) {
  if (of_draft) return {filter_of(job.chains.args.params, b), false, false, {}, kNoId};
  return job.task(b, chain, i);
}

__device__ __forceinline__ void keep_result(const Job& job, int64_t b, int32_t i, bool of_draft, const RowTask& task,
                                            const RowResult& result, Judged& judged) {
  if (of_draft) {
    keep_draft_stats(job, b, i, result);
  } else {
    judged = judged_row(task, result);
  }
}

// The last block of all that have to do with a request judges its chain. Rows that no filter changes are finished by it,
// side by side; a filter takes a block of its own for each row, the last of those that looked at it.
template <bool kGreedy>
__global__ void __launch_bounds__(kThreads, kGreedy ? kGreedyBlocksHeld : kBlocksHeld) rows_kernel(Job job) {
  take_over();
  job.assume_greedy<kGreedy>();
  __shared__ Judged judged[kMostCudaWidth];
  __shared__ Row row;  // for all that is done with a row, more than registers hold
  __shared__ RowTask task;
  const VerifyArgs& args = job.chains.args;
  const Split& split = job.workspace.of_rows;
  const uint32_t blocks = split.blocks, block = blockIdx.x % blocks;
  const int64_t rows = args.batch * args.width, at = blockIdx.x / blocks;
  const bool of_draft = at >= rows;
  const int64_t b = (of_draft ? at - rows : at) / args.width;
  const int32_t i = at % args.width;
  const Row own_row = of_draft ? job.draft_row(b, i) : job.target_row(b, i);
  prefetch_first(own_row, split, block);  // in vain past the end of a chain
  const Chain chain = job.chain(b);
  if (!chain.active || chain.length == 0) {
    if (i == 0 && block == 0 && !of_draft) close_empty(job, b, chain);
    return;
  }

  const Filter filter = filter_of(args.params, b);
  const bool by_equality = job.by_equality(filter), filters = job.filters(filter);
  Judged* const kept = static_cast<Judged*>(job.workspace.judged) + b * args.width;
  if (i < chain.length && !(of_draft && by_equality)) {
    if (threadIdx.x == 0) {
      row = own_row;
      task = task_of(job, b, chain, i, of_draft);
    }
    __syncthreads();
    const RowScratch scratch = job.workspace.row_scratch(at);
    look_at_slices(row, kGreedy ? kArgmax : task, split, block, scratch);
    if (filters) {
      if (!arrive(job.workspace.row_counters + at, blocks)) return;
      const RowResult result = finish_row(row, task, scratch, blocks);
      if (threadIdx.x == 0) keep_result(job, b, i, of_draft, task, result, kept[i]);
    }
  }
  // Blocks whose row is not looked at count as well: whoever comes last changes the lengths that all of them must have
  // read.
  const int64_t sides = looks_at_drafts(args) ? 2 : 1, looked_at = chain.length * (by_equality ? 1 : sides);
  const int64_t finishers = filters ? 1 : blocks;  // of a row that was looked at
  if (!arrive(job.workspace.request_counters + b, looked_at * finishers + (sides * args.width - looked_at) * blocks)) {
    return;
  }
  if (filters) {
    for (int32_t j = threadIdx.x; j < chain.length; j += kThreads) judged[j] = kept[j];
  } else {
    for (int32_t j = warp_index(); j < looked_at; j += kWarps) {
      const bool is_draft = j >= chain.length;
      const int32_t k = is_draft ? j - chain.length : j;
      const Row merged_row = is_draft ? job.draft_row(b, k) : job.target_row(b, k);
      const RowTask merged_task = task_of(job, b, chain, k, is_draft);
      const RowScratch scratch = job.workspace.row_scratch((is_draft ? rows : 0) + b * args.width + k);
      const RowResult result = merge_parts(merged_row, merged_task, scratch, blocks);
      if (lane_index() == 0) keep_result(job, b, k, is_draft, merged_task, result, judged[k]);
    }
  }
  __syncthreads();
  follow(job, b, chain, judged, chain.length, decide(job, b, chain, judged));
}

// The mass of max(weight * target_probs - draft_probs, 0) at row i of a chain, tile by tile.
struct ResidualMass {
  Row target, drafted;
  const int64_t* d2t;
  DraftStats stats;
  float weight, scale, threshold, highest, shift, draft_shift;

  __device__ __forceinline__ ResidualMass(const Job& job, int64_t b, int32_t i, const Judged& judged)
      : target(job.target_row(b, i)),
        drafted(job.draft_row(b, i)),
        d2t(job.chains.args.draft.d2t),
        stats(draft_stats(job, b, i)),
        weight(static_cast<float>(judged.weight)),
        threshold(judged.threshold),
        highest(judged.highest) {
    const float inverse_temperature = filter_of(job.chains.args.params, b).inverse_temperature;
    scale = inverse_temperature * kLog2E;
    shift = kLog2E * static_cast<float>(static_cast<double>(highest) * inverse_temperature - judged.lse);
    draft_shift = static_cast<float>(stats.lse / inverse_temperature);
  }

  // Of the row whose tiles are summed: where the draft has ids of its own, that is the draft's.
  __device__ __forceinline__ uint32_t size() const { return d2t ? drafted.size : target.size; }

  __device__ __forceinline__ void prefetch(uint32_t begin) const {
    prefetch_tile(drafted, begin);
    if (!d2t) prefetch_tile(target, begin);
  }

  __device__ __forceinline__ float target_prob(float x) const {
    return x >= threshold ? exp2_of(fmaf(x - highest, scale, shift)) : 0.0f;
  }

  __device__ __forceinline__ float draft_prob(float x) const {
    return x >= stats.threshold ? exp2_of((x - draft_shift) * scale) : 0.0f;
  }

  // Over target ids, or over draft ids, and then short of the target's weight outside the draft's vocabulary. By a whole
  // warp; all lanes get the result.
  __device__ __forceinline__ float of_tile(uint32_t begin) const {
    Tile draft_tile;
    load_tile(drafted, begin, draft_tile);
    float sum = 0;
    if (d2t) {
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const uint32_t id = held_id(begin, k);
        if (id >= drafted.size) continue;
        sum -= fminf(weight * target_prob(target.at(static_cast<uint32_t>(d2t[id]))), draft_prob(draft_tile.x[k]));
      }
    } else {
      Tile target_tile;
      load_tile(target, begin, target_tile);
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        sum += fmaxf(fmaf(weight, target_prob(target_tile.x[k]), -draft_prob(draft_tile.x[k])), 0.0f);
      }
    }
    return warp_sum(sum);
  }
};

__global__ void __launch_bounds__(kThreads, kBlocksHeld) masses_kernel(Job job) {
  take_over();
  __shared__ Judged judged[kMostCudaWidth];
  __shared__ double masses[kMostCudaWidth];
  const VerifyArgs& args = job.chains.args;
  const Split& split = job.workspace.of_rows;
  const uint32_t blocks = split.blocks, block = blockIdx.x % blocks;
  const int64_t at = blockIdx.x / blocks, b = at / args.width;
  const int32_t i = at % args.width;
  const Decision decision = static_cast<const Decision*>(job.workspace.decisions)[b];
  if (decision.next != Next::kMasses || i == 0 || i >= decision.length) return;

  const Judged* const kept = static_cast<const Judged*>(job.workspace.judged) + b * args.width;
  const ResidualMass residual(job, b, i, kept[i]);
  if (kept[i].weight != 1.0) {
    TilePart* const parts = job.workspace.row_scratch(at).parts;
    for_slices(
        split.first(block), split.end(block), [&](uint32_t begin) { residual.prefetch(begin); },
        [&](uint32_t begin) {
          if (begin >= residual.size()) return;
          const float mass = residual.of_tile(begin);
          if (lane_index() == 0) parts[begin / kTile].mass = mass;
        });
  }
  if (!arrive(job.workspace.request_counters + b, (decision.length - 1) * blocks)) return;

  const Chain chain = job.chain(b);
  const uint32_t tiles = (residual.size() + kTile - 1) / kTile;
  for (int32_t j = threadIdx.x; j < chain.length; j += kThreads) judged[j] = kept[j];
  for (int32_t j = 1 + warp_index(); j < decision.length; j += kWarps) {
    const TilePart* const parts = job.workspace.row_scratch(b * args.width + j).parts;
    double mass = 0;
    for_lane(tiles, [&](uint32_t t) { return __ldcg(&parts[t].mass); }, [&](float found) { mass += found; });
    mass = warp_sum(mass);
    if (lane_index() == 0) masses[j] = fmax(0.0, mass + (args.draft.d2t ? kept[j].weight : 0.0));
  }
  __shared__ Decision next;
  __syncthreads();
  if (threadIdx.x == 0) {
    next = decide_block(job, b, chain, judged, decision, [&](int32_t j) { return masses[j]; });
  }
  __syncthreads();
  follow(job, b, chain, judged, chain.length, next);
}

// The score of `id` in the race for the residual.
__device__ __forceinline__ float residual_score(const Job& job, const Row& target, const Row& draft,
                                                const DraftStats& stats, const Judged& judged, double weight,
                                                float inverse_temperature, const NoiseKey& noise, uint32_t id) {
  if (id >= target.size) return -INFINITY;
  const double target_mass = weight * probability(target.at(id), judged.threshold, judged.lse, inverse_temperature);
  const float logit = draft_logit(draft, job.chains.args.draft.d2t, id);
  const double mass = target_mass - probability(logit, stats.threshold, stats.lse, inverse_temperature);
  if (!(mass > 0)) return -INFINITY;
  return static_cast<float>(log(mass) - log(-log(unit_from_word(philox_word(noise, id)))));
}

__global__ void __launch_bounds__(kThreads, kBlocksHeld) residual_kernel(Job job) {
  take_over();
  const VerifyArgs& args = job.chains.args;
  const Split& split = job.workspace.of_requests;
  const uint32_t blocks = split.blocks, block = blockIdx.x % blocks;
  const int64_t b = blockIdx.x / blocks;
  Decision decision = static_cast<const Decision*>(job.workspace.decisions)[b];
  if (decision.next != Next::kResidual) return;

  const Chain chain = job.chain(b);
  const int32_t i = decision.num_accepted;
  const Judged judged = static_cast<const Judged*>(job.workspace.judged)[b * args.width + i];
  const Row target = job.target_row(b, i), draft = job.draft_row(b, i);
  const DraftStats stats = draft_stats(job, b, i);
  const float inverse_temperature = filter_of(args.params, b).inverse_temperature;
  const NoiseKey noise = job.noise(b, chain, Purpose::kResidual, i);
  const auto score = [&](uint32_t id) {
    return residual_score(job, target, draft, stats, judged, decision.weight, inverse_temperature, noise, id);
  };

  const double shift = judged.highest * static_cast<double>(inverse_temperature) - judged.lse;
  const float most = static_cast<float>(shift + log(decision.weight));
  const auto bound = [&](float x) {
    return x >= judged.threshold ? fmaf(x - judged.highest, inverse_temperature, most) : -INFINITY;
  };
  uint64_t best = 0;  // of the warp's tiles
  for_slices(
      split.first(block), split.end(block), [&](uint32_t begin) { prefetch_tile(target, begin); },
      [&](uint32_t begin) {
        if (begin >= target.size) return;
        Tile tile;
        load_tile(target, begin, tile);
        best = race(tile, begin, noise, best, bound, score);
      });
  best = block_max(best);
  WarpBest* const bests = job.workspace.row_scratch(b * args.width).bests;
  if (threadIdx.x == 0) bests[block].winner = best;
  if (!arrive(job.workspace.request_counters + b, blocks)) return;

  best = 0;
  for (uint32_t s = threadIdx.x; s < blocks; s += kThreads) best = max(best, __ldcg(&bests[s].winner));
  best = block_max(best);
  decision.next_token = best != 0 ? packed_id(best) : draw_alone(job, b, chain, i, Purpose::kResidual, judged);
  if (warp_index() == 0) commit(job, b, chain, decision);
}

cudaError_t run(const ChainJob& chains, const CudaQueue& queue, const Workspace& workspace) {
  const VerifyArgs& args = chains.args;
  const Job job{chains, workspace};
  const int64_t row_blocks = args.batch * args.width * workspace.of_rows.blocks;
  const bool sampled = args.rule == Rule::kToken || args.rule == Rule::kBlock;
  const bool has_residual = sampled && args.draft.logits.data != nullptr;
  cudaError_t error = cudaSuccess;
  Follows follows = Follows::kAnything;
  const auto queue_kernel = [&](void (*kernel)(Job), int64_t blocks) {
    if (error == cudaSuccess) error = launch(kernel, blocks, queue, follows, job);
    follows = Follows::kOwnKernel;
  };
  const bool greedy = args.rule == Rule::kGreedy;
  if (goes_in_turn(args, queue.multiprocessors)) {
    queue_kernel(greedy ? in_turn_kernel<true> : in_turn_kernel<false>, args.batch);
  } else {
    const int64_t blocks = looks_at_drafts(args) ? 2 * row_blocks : row_blocks;
    queue_kernel(greedy ? rows_kernel<true> : rows_kernel<false>, blocks);
  }
  if (has_residual && args.rule == Rule::kBlock) queue_kernel(masses_kernel, row_blocks);
  if (has_residual) queue_kernel(residual_kernel, args.batch * workspace.of_requests.blocks);
  return error;
}

}  // namespace
}  // namespace cuda

const char* judge_chains_cuda(const ChainJob& chains, const CudaQueue& queue) {
  const VerifyArgs& args = chains.args;
  if (args.batch == 0) return nullptr;
  const int64_t sides = cuda::looks_at_drafts(args) ? 2 : 1;
  const int blocks_held = args.rule == Rule::kGreedy ? cuda::kGreedyBlocksHeld : cuda::kBlocksHeld;
  return cuda::with_workspace(queue, blocks_held, sides, args.batch, args.width, args.target.vocab,
                              [&](const cuda::Workspace& workspace) { return cuda::run(chains, queue, workspace); });
}

const char* load_chains_cuda(int device) {
  using namespace cuda;
  return load(
      {reinterpret_cast<const void*>(rows_kernel<true>), reinterpret_cast<const void*>(rows_kernel<false>),
       reinterpret_cast<const void*>(in_turn_kernel<true>), reinterpret_cast<const void*>(in_turn_kernel<false>),
       reinterpret_cast<const void*>(masses_kernel), reinterpret_cast<const void*>(residual_kernel)},
      device);
}

}  // namespace pearl
