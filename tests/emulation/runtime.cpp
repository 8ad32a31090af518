#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <set>
#include <vector>

// The runtime. Work is done when it is queued, so kernels that overlap on a GPU run one after the other here; on a stream
// that is being captured it is written down instead. A stream is any address; 0 is one as well.

namespace {

enum class Kind { kKernel, kMemset, kEarlyKernel };  // the last may begin before what it follows is done

struct Node {
  Kind kind;
  std::function<cudaError_t()> work;
};

}  // namespace

struct CUuserObject_st {
  cudaHostFn_t destroy;
  void* pointer;
};

struct CUgraph_st {
  unsigned long long id;  // of its capture
  std::vector<Node> nodes;
  std::vector<cudaUserObject_t> objects;
};

namespace {

std::mutex mutex;
std::map<cudaStream_t, cudaGraph_t> capturing;
unsigned long long captures = 0;
thread_local cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;
thread_local std::string problem;                            // the last error, in words
std::set<const void*> loaded, queued;                        // kernels
thread_local int launches_left = -1, allocations_left = -1;  // until memory lacks for one; negative: it never does

cudaError_t fail(cudaError_t error, std::string text) {
  problem = std::move(text);
  return error;
}

cudaError_t unless_last(int& left) {
  return left < 0 || left-- > 0 ? cudaSuccess : fail(cudaErrorMemoryAllocation, "out of memory");
}

cudaGraph_t graph_captured_on(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  const auto found = capturing.find(stream);
  return found == capturing.end() ? nullptr : found->second;
}

// As on a GPU, nothing that may have to wait is allowed during a capture, unless the thread says that it knows of that.
cudaError_t unless_capturing() {
  const std::lock_guard lock(mutex);
  if (capturing.empty() || mode_of_thread == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  return fail(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing");
}

cudaError_t submit(cudaStream_t stream, Node node) {
  const cudaGraph_t graph = graph_captured_on(stream);
  if (graph == nullptr) return node.work();
  graph->nodes.push_back(std::move(node));
  return cudaSuccess;
}

}  // namespace

cudaError_t emulation::launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> thread) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const bool in_one_dimension = grid.y == 1 && grid.z == 1 && block.y == 1 && block.z == 1;
  const bool in_whole_warps = block.x > 0 && block.x <= 1024 && block.x % warpSize == 0;
  if (!in_one_dimension || !in_whole_warps || grid.x == 0 || config.dynamicSmemBytes != 0) {
    return fail(cudaErrorInvalidConfiguration, "invalid configuration argument");
  }
  if (const cudaError_t error = unless_last(launches_left); error != cudaSuccess) return error;
  {
    const std::lock_guard lock(mutex);
    queued.insert(kernel);
  }
  const bool early = config.numAttrs > 0 && config.attrs->val.programmaticStreamSerializationAllowed != 0;
  return submit(config.stream, {early ? Kind::kEarlyKernel : Kind::kKernel, [=, thread = std::move(thread)] {
                                  const std::string problem = run(grid.x, block.x, thread);
                                  return problem.empty() ? cudaSuccess : fail(cudaErrorLaunchFailure, problem);
                                }});
}

const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : problem.c_str(); }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void* kernel) {
  const std::lock_guard lock(mutex);
  loaded.insert(kernel);
  return cudaSuccess;
}

// It holds garbage at first.
cudaError_t cudaMalloc(void** address, size_t bytes) {
  if (const cudaError_t error = unless_capturing(); error != cudaSuccess) return error;
  if (const cudaError_t error = unless_last(allocations_left); error != cudaSuccess) return error;
  *address = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*address == nullptr) return fail(cudaErrorMemoryAllocation, "out of memory");
  std::memset(*address, 0xa5, bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* address) {
  if (const cudaError_t error = unless_capturing(); error != cudaSuccess) return error;
  std::free(address);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t stream) {
  return submit(stream, {Kind::kMemset, [=] {
                           std::memset(address, value, bytes);
                           return cudaSuccess;
                         }});
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = cudaStreamPerThread;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return unless_capturing(); }
cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  if (const cudaError_t error = unless_capturing(); error != cudaSuccess) return error;
  *id = reinterpret_cast<uintptr_t>(stream);
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(mode_of_thread, *mode);
  return cudaSuccess;
}

#if CUDART_VERSION >= 13000
#define EMULATION_EDGES const cudaGraphEdgeData**,
#else
#define EMULATION_EDGES
#endif
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t**, EMULATION_EDGES size_t*) {
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

// For tests, which call them by name: what torch does on a GPU, and what may go wrong there.
extern "C" {

// Lets memory lack for one launch, and for one allocation, of this thread: after so many that succeed.
void emulation_lack_memory(int launches, int allocations) {
  launches_left = launches;
  allocations_left = allocations;
}

// Kernels that were queued at some time, and never loaded before or after.
int emulation_count_not_loaded() {
  const std::lock_guard lock(mutex);
  return std::count_if(queued.begin(), queued.end(), [](const void* kernel) { return !loaded.contains(kernel); });
}

void emulation_begin_capture(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  capturing[stream] = new CUgraph_st{captures++, {}, {}};
}

cudaGraph_t emulation_end_capture(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  return capturing.extract(stream).mapped();
}

int emulation_count_nodes(cudaGraph_t graph, Kind kind) {
  return std::count_if(graph->nodes.begin(), graph->nodes.end(), [=](const Node& node) { return node.kind == kind; });
}

// Null, or what went wrong.
const char* emulation_replay(cudaGraph_t graph) {
  for (const Node& node : graph->nodes) {
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
