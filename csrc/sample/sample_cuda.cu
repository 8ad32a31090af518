#include "common/cuda/row_result.cuh"
#include "sample/sample_cuda.h"

namespace pearl {
namespace cuda {
namespace {

struct Task {
  SampleArgs args;
  Workspace workspace;
};

__device__ void write_sample(const SampleArgs& args, int64_t b, const RowTask& task, const RowResult& row) {
  const bool good = row.status == kOk;
  args.tokens[b] = !good ? 0 : task.greedy ? row.best : row.drawn;
  args.threshold[b] = !good ? -INFINITY : task.greedy ? row.highest : row.threshold;
  args.lse[b] = !good || task.greedy ? 0.0f : row.lse;
  args.status[b] = row.status;
}

// Each block takes slices of a row; the last one to be done with a row writes its token.
__global__ void __launch_bounds__(kThreads, kBlocksHeld) sample_kernel(Task job) {
  take_over();
  const SampleArgs& args = job.args;
  const Split& split = job.workspace.of_rows;
  const uint32_t block = blockIdx.x % split.blocks;
  const int64_t b = blockIdx.x / split.blocks;
  const Row row = row_of(args.logits, b, 0);
  prefetch_first(row, split, block);
  const Filter filter = filter_of(args.params, b);
  const NoiseKey noise =
      make_noise_key(args.params.seed[b], args.positions[b], args.purpose, args.epochs ? args.epochs[b] : 0);
  const RowTask task{filter, filter.greedy(), !filter.greedy(), noise, kNoId};

  const RowScratch scratch = job.workspace.row_scratch(b);
  look_at_slices(row, task, split, block, scratch);
  if (!arrive(job.workspace.row_counters + b, split.blocks)) return;
  const RowResult result = finish_row(row, task, scratch, split.blocks);
  if (threadIdx.x == 0) write_sample(args, b, task, result);
}

}  // namespace
}  // namespace cuda

const char* sample_cuda(const SampleArgs& args, const CudaQueue& queue) {
  if (args.batch == 0) return nullptr;
  const auto run = [&](const cuda::Workspace& workspace) {
    const int64_t blocks = args.batch * workspace.of_rows.blocks;
    return cuda::launch(cuda::sample_kernel, blocks, queue, cuda::Follows::kAnything, cuda::Task{args, workspace});
  };
  return cuda::with_workspace(queue, cuda::kBlocksHeld, 1, args.batch, 1, args.logits.vocab, run);
}

const char* load_sample_cuda(int device) {
  return cuda::load({reinterpret_cast<const void*>(cuda::sample_kernel)}, device);
}

}  // namespace pearl
