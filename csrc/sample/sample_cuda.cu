#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "sample/sample_cuda.h"

namespace pearl {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 1024;
constexpr unsigned kFullWarp = 0xffffffffu;

// A logit and its id in one number: larger logits are larger, and of equal ones the lower id.
using Key = unsigned long long;
constexpr Key kNoKey = 0;

__device__ float to_float(float x) { return x; }
__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float to_float(__half x) { return __half2float(x); }

__device__ Key make_key(float logit, uint32_t id) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);  // the addition makes -0 and 0 equal
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<Key>(ordered) << 32 | (0xffffffffu - id);
}

__device__ uint32_t id_of(Key key) { return 0xffffffffu - static_cast<uint32_t>(key); }

__device__ float logit_of(Key key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

__device__ Key warp_max(Key key) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    key = max(key, __shfl_xor_sync(kFullWarp, key, offset));
  }
  return key;
}

// All threads of the block must call it; the result is whole in the first warp only.
__device__ Key block_max(Key key) {
  __shared__ Key of_warp[kThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  key = warp_max(key);
  if (lane == 0) of_warp[warp] = key;
  __syncthreads();
  return warp == 0 ? warp_max(of_warp[lane]) : kNoKey;
}
static_assert(kThreads / kWarp == kWarp, "block_max reduces one key per lane of the first warp");

// What one thread has seen of its row.
struct Seen {
  Key best = kNoKey;
  bool invalid = false;

  __device__ void look(float logit, int64_t id) {
    invalid |= !(logit < INFINITY);  // NaN or +inf
    best = max(best, make_key(logit, static_cast<uint32_t>(id)));
  }
};

// Rows start anywhere: ids before the first 16-byte boundary and after the last one are read one by one.
template <typename T>
__device__ Seen look_at_row(const T* row, int64_t vocab) {
  constexpr int kPerLoad = sizeof(uint4) / sizeof(T);
  const int64_t misaligned = reinterpret_cast<uintptr_t>(row) % sizeof(uint4) / sizeof(T);
  const int64_t head = min(vocab, (kPerLoad - misaligned) % kPerLoad);
  const int64_t loads = (vocab - head) / kPerLoad;
  const uint4* body = reinterpret_cast<const uint4*>(row + head);

  Seen seen;
  for (int64_t i = threadIdx.x; i < loads; i += kThreads) {
    const uint4 packed = __ldg(body + i);
    const T* values = reinterpret_cast<const T*>(&packed);
#pragma unroll
    for (int k = 0; k < kPerLoad; ++k) seen.look(to_float(values[k]), head + i * kPerLoad + k);
  }
  for (int64_t id = threadIdx.x; id < head; id += kThreads) seen.look(to_float(row[id]), id);
  for (int64_t id = head + loads * kPerLoad + threadIdx.x; id < vocab; id += kThreads) {
    seen.look(to_float(row[id]), id);
  }
  return seen;
}

// One block per row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    greedy_kernel(const T* logits, int64_t row_stride, int64_t vocab, int64_t* tokens, float* threshold, float* lse,
                  int32_t* status) {
  const int64_t row = blockIdx.x;
  const Seen seen = look_at_row(logits + row * row_stride, vocab);
  const bool invalid = __syncthreads_or(seen.invalid);
  const Key best = block_max(seen.best);
  if (threadIdx.x != 0) return;
  const float logit = logit_of(best);
  const int32_t bits = invalid ? kTargetInvalid : logit == -INFINITY ? kEmptyDistribution : kOk;
  tokens[row] = bits == kOk ? id_of(best) : 0;
  threshold[row] = bits == kOk ? logit : -INFINITY;
  lse[row] = 0.0f;
  status[row] = bits;
}

template <typename T>
void launch(const GreedyCudaArgs& args) {
  greedy_kernel<<<static_cast<unsigned>(args.batch), kThreads, 0, static_cast<cudaStream_t>(args.stream)>>>(
      static_cast<const T*>(args.logits.data), args.logits.batch_stride, args.logits.vocab, args.tokens, args.threshold,
      args.lse, args.status);
}

// The device that launches go to, put back at the end of the scope.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ == cudaSuccess && before_ != device) {
      error_ = cudaSetDevice(device);
      changed_ = true;
    }
  }
  ~DeviceScope() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

  cudaError_t error() const { return error_; }

 private:
  cudaError_t error_;
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace

const char* sample_greedy_cuda(const GreedyCudaArgs& args) {
  if (args.batch == 0) return nullptr;
  const DeviceScope scope(args.device);
  if (scope.error() != cudaSuccess) return cudaGetErrorString(scope.error());
  switch (args.logits.dtype) {
    case DType::kFloat32: launch<float>(args); break;
    case DType::kBFloat16: launch<__nv_bfloat16>(args); break;
    case DType::kFloat16: launch<__half>(args); break;
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace pearl
