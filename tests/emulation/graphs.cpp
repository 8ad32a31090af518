#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <new>
#include <vector>

// Memory, streams and graphs of the emulated runtime. A stream is any address; 0 is one as well.

struct CUuserObject_st {
  cudaHostFn_t destroy;
  void* pointer;
};

struct CUgraph_st {
  struct Node {
    emulation::NodeKind kind;
    std::function<cudaError_t()> work;
  };
  unsigned long long id;  // of its capture
  std::vector<Node> nodes;
  std::vector<cudaUserObject_t> objects;
};

namespace {

std::mutex mutex;
std::map<cudaStream_t, cudaGraph_t> capturing;
unsigned long long captures = 0;
thread_local cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;

cudaGraph_t graph_captured_on(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  const auto found = capturing.find(stream);
  return found == capturing.end() ? nullptr : found->second;
}

cudaError_t unless_capturing() {
  const std::lock_guard lock(mutex);
  const bool allowed = capturing.empty() || mode_of_thread == cudaStreamCaptureModeRelaxed;
  return allowed ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}

}  // namespace

namespace emulation {

cudaError_t submit(cudaStream_t stream, NodeKind kind, std::function<cudaError_t()> work) {
  const cudaGraph_t graph = graph_captured_on(stream);
  if (graph == nullptr) return work();
  graph->nodes.push_back({kind, std::move(work)});
  return cudaSuccess;
}

}  // namespace emulation

cudaError_t cudaMalloc(void** address, size_t bytes) {
  if (const cudaError_t error = unless_capturing(); error != cudaSuccess) return error;
  *address = ::operator new(bytes, std::align_val_t{256}, std::nothrow);
  if (*address == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*address, 0xa5, bytes);
  return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
  if (const cudaError_t error = unless_capturing(); error != cudaSuccess) return error;
  ::operator delete(address, std::align_val_t{256});
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t stream) {
  return emulation::submit(stream, emulation::NodeKind::kMemset, [=] {
    std::memset(address, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = reinterpret_cast<cudaStream_t>(new char);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete reinterpret_cast<char*>(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return unless_capturing(); }
cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  *id = reinterpret_cast<uintptr_t>(stream);
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  *mode = std::exchange(mode_of_thread, *mode);
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph) {
  *graph = graph_captured_on(stream);
  *status = *graph == nullptr ? cudaStreamCaptureStatusNone : cudaStreamCaptureStatusActive;
  if (*graph != nullptr) *id = (*graph)->id;
  return cudaSuccess;
}

cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* pointer, cudaHostFn_t destroy, unsigned, unsigned) {
  *object = new CUuserObject_st{destroy, pointer};
  return cudaSuccess;
}
cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned, unsigned) {
  graph->objects.push_back(object);
  return cudaSuccess;
}

// For tests, which call them by name: what torch does on a GPU.
extern "C" {

void emulation_begin_capture(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  capturing[stream] = new CUgraph_st{captures++, {}, {}};
}

cudaGraph_t emulation_end_capture(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  const cudaGraph_t graph = capturing.at(stream);
  capturing.erase(stream);
  return graph;
}

int emulation_count_nodes(cudaGraph_t graph, int kind) {
  int count = 0;
  for (const auto& node : graph->nodes) count += node.kind == static_cast<emulation::NodeKind>(kind);
  return count;
}

// Null, or what went wrong.
const char* emulation_replay(cudaGraph_t graph) {
  for (const auto& node : graph->nodes) {
    if (const cudaError_t error = node.work(); error != cudaSuccess) return cudaGetErrorString(error);
  }
  return nullptr;
}

void emulation_destroy_graph(cudaGraph_t graph) {
  for (const cudaUserObject_t object : graph->objects) {
    object->destroy(object->pointer);
    delete object;
  }
  delete graph;
}

}  // extern "C"
