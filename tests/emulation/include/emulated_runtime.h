#pragma once

// Included by cuda_runtime.h, whose language it needs.

#include <functional>
#include <tuple>

// The runtime. A launch returns when the grid is done, so kernels that overlap on a GPU run one after the other here. On
// a stream that is being captured, work is written down instead.

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
};
typedef struct CUstream_st* cudaStream_t;
typedef struct CUgraph_st* cudaGraph_t;
typedef struct CUuserObject_st* cudaUserObject_t;
typedef void (*cudaHostFn_t)(void*);

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline void cudaGridDependencySynchronize() {}
inline void cudaTriggerProgrammaticLaunchCompletion() {}

// Memory holds garbage at first. As on a GPU, nothing that may have to wait is allowed during a capture, unless the
// thread says that it knows of that.

constexpr unsigned cudaStreamNonBlocking = 1, cudaUserObjectNoDestructorSync = 1, cudaGraphUserObjectMove = 1;
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0, cudaStreamCaptureModeRelaxed = 2 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };

cudaError_t cudaMalloc(void** address, size_t bytes);
cudaError_t cudaFree(void* address);
cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id);
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode);
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph);
cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* pointer, cudaHostFn_t destroy, unsigned references,
                                 unsigned flags);
cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned count, unsigned flags);

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

namespace emulation {

inline thread_local cudaError_t last_error = cudaSuccess;

enum class NodeKind { kKernel, kMemset, kEarlyKernel };  // the last may begin before what it follows is done

// Does the work, or adds it to the graph that is being captured on the stream.
cudaError_t submit(cudaStream_t stream, NodeKind kind, std::function<cudaError_t()> work);

// A text with the types of the kernel's parameters in it, for want of the kernel's own name.
template <typename... Parameters>
const char* signature(void (*)(Parameters...)) {
  return std::strchr(__PRETTY_FUNCTION__, '[');
}

}  // namespace emulation

inline cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorLaunchFailure: return emulation::last_problem();
  }
  return "unrecognized error code";
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const bool in_one_dimension = grid.y == 1 && grid.z == 1 && block.y == 1 && block.z == 1;
  const bool in_whole_warps = block.x > 0 && block.x <= 1024 && block.x % warpSize == 0;
  if (!in_one_dimension || !in_whole_warps || grid.x == 0 || config->dynamicSmemBytes != 0) {
    return emulation::last_error = cudaErrorInvalidConfiguration;
  }
  const std::tuple<Parameters...> copies(std::forward<Arguments>(arguments)...);
  const emulation::Grid shape{grid.x, block.x, emulation::signature(kernel)};
  bool early = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    early |= config->attrs[i].val.programmaticStreamSerializationAllowed != 0;
  }
  const auto kind = early ? emulation::NodeKind::kEarlyKernel : emulation::NodeKind::kKernel;
  return emulation::submit(config->stream, kind, [shape, kernel, copies] {
    const bool done = emulation::run(shape, [&] { std::apply(kernel, copies); });
    return done ? cudaSuccess : emulation::last_error = cudaErrorLaunchFailure;
  });
}
