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

__global__ void __launch_bounds__(kThreads, 2) rows_kernel(Job job) {
  take_over();
  __shared__ Judged judged[kMostCudaWidth];
  __shared__ Row row;  // for all that is done with a row, more than registers hold
  __shared__ RowTask task;
  const VerifyArgs& args = job.chains.args;
  const uint32_t blocks = job.workspace.blocks, block = blockIdx.x % blocks;
  const int64_t rows = args.batch * args.width, at = blockIdx.x / blocks;
  const bool of_draft = at >= rows;
  const int64_t b = (of_draft ? at - rows : at) / args.width;
  const int32_t i = at % args.width;
  const Chain chain = job.chain(b);
  if (!chain.active || chain.length == 0) {
    if (i == 0 && block == 0 && !of_draft) close_empty(job, b, chain);
    return;
  }

  const bool by_equality = job.by_equality(filter_of(args.params, b));
  Judged* const kept = static_cast<Judged*>(job.workspace.judged) + b * args.width;
  if (i < chain.length && !(of_draft && by_equality)) {
    if (threadIdx.x == 0) {
      row = of_draft ? job.draft_row(b, i) : job.target_row(b, i);
      task = of_draft ? RowTask{filter_of(args.params, b), false, false, {}, kNoId} : job.task(b, chain, i);
    }
    __syncthreads();
    const RowScratch scratch = job.workspace.row_scratch(at);
    look_at_slices(row, task, job.workspace, block, scratch);
    if (!arrive(job.workspace.row_counters + at, blocks)) return;
    const RowResult result = finish_row(row, task, scratch);
    if (threadIdx.x == 0) {
      if (of_draft) {
        keep_draft_stats(job, b, i, result);
      } else {
        kept[i] = judged_row(task, result);
      }
    }
  }
  // Blocks whose row is not looked at count as well: whoever comes last changes the lengths that all of them must have
  // read.
  const int64_t sides = looks_at_drafts(args) ? 2 : 1, looked_at = chain.length * (by_equality ? 1 : sides);
  if (!arrive(job.workspace.request_counters + b, looked_at + (sides * args.width - looked_at) * blocks)) return;
  for (int32_t j = threadIdx.x; j < chain.length; j += kThreads) judged[j] = kept[j];
  __syncthreads();
  follow(job, b, chain, judged, chain.length, decide(job, b, chain, judged));
}

// Sum of max(weight * target_probs - draft_probs, 0) over a slice: of target ids, or of draft ids where those are others,
// and then short of the target's weight outside the draft's vocabulary.
__device__ __forceinline__ float slice_mass(const Job& job, int64_t b, int32_t i, const Judged& judged,
                                            uint32_t slice) {
  const DraftSide& draft = job.chains.args.draft;
  const float inverse_temperature = filter_of(job.chains.args.params, b).inverse_temperature;
  const float scale = inverse_temperature * kLog2E, weight = static_cast<float>(judged.weight);
  const Row target_row = job.target_row(b, i), draft_row = job.draft_row(b, i);
  const DraftStats stats = draft_stats(job, b, i);
  const float shift = static_cast<float>(static_cast<double>(judged.highest) * inverse_temperature - judged.lse);
  const float draft_shift = static_cast<float>(stats.lse / inverse_temperature);
  const auto target_prob = [&](float x) {
    return x >= judged.threshold ? exp2_of(fmaf(x - judged.highest, scale, shift * kLog2E)) : 0.0f;
  };
  const auto draft_prob = [&](float x) { return x >= stats.threshold ? exp2_of((x - draft_shift) * scale) : 0.0f; };

  const uint32_t begin = slice * kSlice + warp_index() * kTile;
  const uint32_t size = draft.d2t ? draft_row.size : target_row.size;
  float sum = 0;
  if (begin < size) {
    Tile drafted;
    load_tile(draft_row, begin, drafted);
    if (draft.d2t) {
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const uint32_t id = held_id(begin, k);
        if (id >= size) continue;
        const float target = weight * target_prob(target_row.at(static_cast<uint32_t>(draft.d2t[id])));
        sum -= fminf(target, draft_prob(drafted.x[k]));
      }
    } else {
      Tile target;
      load_tile(target_row, begin, target);
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        sum += fmaxf(fmaf(weight, target_prob(target.x[k]), -draft_prob(drafted.x[k])), 0.0f);
      }
    }
  }
  return static_cast<float>(block_sum(sum));
}

__global__ void __launch_bounds__(kThreads, 2) masses_kernel(Job job) {
  take_over();
  __shared__ Judged judged[kMostCudaWidth];
  __shared__ double masses[kMostCudaWidth];
  const VerifyArgs& args = job.chains.args;
  const uint32_t slices = job.workspace.slices, blocks = job.workspace.blocks, block = blockIdx.x % blocks;
  const int64_t at = blockIdx.x / blocks, b = at / args.width;
  const int32_t i = at % args.width;
  const Decision decision = static_cast<const Decision*>(job.workspace.decisions)[b];
  if (decision.next != Next::kMasses || i == 0 || i >= decision.length) return;

  const Judged* const kept = static_cast<const Judged*>(job.workspace.judged) + b * args.width;
  RowPart* const parts = job.workspace.parts + b * args.width * slices;
  if (kept[i].weight != 1.0) {
    job.workspace.for_slices(block, [&](uint32_t slice) {
      const float mass = slice_mass(job, b, i, kept[i], slice);
      if (threadIdx.x == 0) parts[i * slices + slice].mass = mass;
    });
  }
  if (!arrive(job.workspace.request_counters + b, (decision.length - 1) * blocks)) return;

  const Chain chain = job.chain(b);
  for (int32_t j = threadIdx.x; j < chain.length; j += kThreads) judged[j] = kept[j];
  for (int32_t j = 1 + warp_index(); j < decision.length; j += kWarps) {
    double mass = 0;
    for (uint32_t s = lane_index(); s < slices; s += kWarp) mass += __ldcg(&parts[j * slices + s].mass);
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
  const double target_mass = weight * probability(target.at(id), judged.threshold, judged.lse, inverse_temperature);
  const float logit = draft_logit(draft, job.chains.args.draft.d2t, id);
  const double mass = target_mass - probability(logit, stats.threshold, stats.lse, inverse_temperature);
  if (!(mass > 0)) return -INFINITY;
  return static_cast<float>(log(mass) - log(-log(unit_from_word(philox_word(noise, id)))));
}

__global__ void __launch_bounds__(kThreads, 2) residual_kernel(Job job) {
  take_over();
  const VerifyArgs& args = job.chains.args;
  const uint32_t slices = job.workspace.slices, blocks = job.workspace.blocks, block = blockIdx.x % blocks;
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

  const float first = score(judged.best);  // any score will do to begin with, and this one is often high
  const double shift = judged.highest * static_cast<double>(inverse_temperature) - judged.lse;
  const float bound = static_cast<float>(shift + log(decision.weight));
  uint64_t best = first > -INFINITY ? pack(first, judged.best) : 0;
  job.workspace.for_slices(block, [&](uint32_t slice) {
    const uint32_t begin = slice * kSlice + warp_index() * kTile;
    if (begin >= target.size) return;
    Tile tile;
    load_tile(target, begin, tile);
    const uint32_t mask = contenders(tile, begin, noise, best, [&](float x) {
      return x >= judged.threshold ? fmaf(x - judged.highest, inverse_temperature, bound) : -INFINITY;
    });
    best = race(begin, mask, best, score);
  });
  best = block_max(best);
  RowPart* const parts = job.workspace.parts + b * args.width * slices;
  if (threadIdx.x == 0) parts[block].winner = best;
  if (!arrive(job.workspace.request_counters + b, blocks)) return;

  best = 0;
  for (uint32_t s = threadIdx.x; s < blocks; s += kThreads) best = max(best, __ldcg(&parts[s].winner));
  best = block_max(best);
  decision.next_token = best != 0 ? packed_id(best) : draw_alone(job, b, chain, i, Purpose::kResidual, judged);
  if (threadIdx.x == 0) commit(job, b, chain, decision);
}

cudaError_t run(const ChainJob& chains, const CudaQueue& queue, const Workspace& workspace) {
  const VerifyArgs& args = chains.args;
  const Job job{chains, workspace};
  const int64_t blocks = job.workspace.blocks, row_blocks = args.batch * args.width * blocks;
  const bool sampled = args.rule == Rule::kToken || args.rule == Rule::kBlock;
  const bool has_residual = sampled && args.draft.logits.data != nullptr;
  cudaError_t error = cudaSuccess;
  Follows follows = Follows::kAnything;
  const auto queue_kernel = [&](void (*kernel)(Job), int64_t blocks) {
    if (error == cudaSuccess) error = launch(kernel, blocks, queue, follows, job);
    follows = Follows::kOwnKernel;
  };
  if (goes_in_turn(args, queue.multiprocessors)) {
    queue_kernel(in_turn_kernel, args.batch);
  } else {
    queue_kernel(rows_kernel, looks_at_drafts(args) ? 2 * row_blocks : row_blocks);
  }
  if (has_residual && args.rule == Rule::kBlock) queue_kernel(masses_kernel, row_blocks);
  if (has_residual) queue_kernel(residual_kernel, args.batch * blocks);
  return error;
}

}  // namespace
}  // namespace cuda

const char* judge_chains_cuda(const ChainJob& chains, const CudaQueue& queue) {
  const VerifyArgs& args = chains.args;
  if (args.batch == 0) return nullptr;
  const int64_t sides = cuda::looks_at_drafts(args) ? 2 : 1;
  return cuda::with_workspace(queue, sides, args.batch, args.width, args.target.vocab,
                              [&](const cuda::Workspace& workspace) { return cuda::run(chains, queue, workspace); });
}

}  // namespace pearl
