#include "common/cuda/memory.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <memory>
#include <new>
#include <tuple>

namespace pearl::cuda {
namespace {

// Streams by number: the handle of one that was destroyed may become another's while work is still queued on it. In a
// capture, which may not ask for the number, by handle: none is destroyed there.
struct Owner {
  int device = 0;
  unsigned long long stream = 0;
  bool is_capture = false;
  unsigned long long capture = 0;

  bool operator<(const Owner& other) const {
    return std::tie(device, stream, is_capture, capture) <
           std::tie(other.device, other.stream, other.is_capture, other.capture);
  }
};

struct Slot {
  std::mutex turn;
  Memory memory;
};

// Nothing is asked of CUDA under its mutex: CUDA's own thread waits for that when a graph is destroyed.
struct Registry {
  std::mutex mutex;
  std::map<Owner, std::shared_ptr<Slot>> slots;
  std::vector<Memory> spare;  // of graphs that are gone
};

// Never destroyed: graphs may be, after all else.
Registry& registry() {
  static Registry* const all = new Registry;
  return *all;
}

std::shared_ptr<Slot> slot_of(const Owner& owner) {
  const std::lock_guard lock(registry().mutex);
  std::shared_ptr<Slot>& slot = registry().slots[owner];
  if (!slot) slot = std::make_shared<Slot>();
  return slot;
}

bool holds(const Memory& memory, int64_t counters_bytes, int64_t scratch_bytes) {
  return memory.counters_bytes >= counters_bytes && memory.scratch_bytes >= scratch_bytes;
}

// While it lives, its thread may ask CUDA for what a capture has no room for, whatever streams are captured.
class BesideCaptures {
 public:
  BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCaptures(const BesideCaptures&) = delete;
  BesideCaptures& operator=(const BesideCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Zeroes the counters on a stream of its own and waits for that.
cudaError_t make_memory(int device, int64_t counters_bytes, int64_t scratch_bytes, Memory* made) {
  constexpr int64_t kAlignment = 256;
  counters_bytes = (counters_bytes + kAlignment - 1) / kAlignment * kAlignment;
  const BesideCaptures beside;
  void* begin = nullptr;
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaMalloc(&begin, static_cast<size_t>(counters_bytes + scratch_bytes));
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaMemsetAsync(begin, 0, static_cast<size_t>(counters_bytes), stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  if (stream != nullptr) cudaStreamDestroy(stream);
  if (error != cudaSuccess) {
    cudaFree(begin);
    return error;
  }
  *made = {device, static_cast<uint32_t*>(begin), static_cast<char*>(begin) + counters_bytes, counters_bytes,
           scratch_bytes};
  return cudaSuccess;
}

bool take_spare(int device, int64_t counters_bytes, int64_t scratch_bytes, Memory* taken) {
  const std::lock_guard lock(registry().mutex);
  std::vector<Memory>& spare = registry().spare;
  const auto found = std::find_if(spare.begin(), spare.end(), [&](const Memory& memory) {
    return memory.device == device && holds(memory, counters_bytes, scratch_bytes);
  });
  if (found == spare.end()) return false;
  *taken = *found;
  spare.erase(found);
  return true;
}

// What a graph keeps.
struct Kept {
  Owner owner;
  Memory memory;
};

void give_back(void* pointer) {
  const std::unique_ptr<Kept> kept(static_cast<Kept*>(pointer));
  const std::lock_guard lock(registry().mutex);
  registry().spare.push_back(kept->memory);
  registry().slots.erase(kept->owner);
}

// Gives the memory to the graph, which gives it back to `spare` when it is destroyed.
cudaError_t tie_to_graph(cudaGraph_t graph, const Owner& owner, const Memory& memory) {
  auto kept = std::make_unique<Kept>(Kept{owner, memory});
  cudaUserObject_t object = nullptr;
  const cudaError_t error = cudaUserObjectCreate(&object, kept.get(), give_back, 1, cudaUserObjectNoDestructorSync);
  if (error != cudaSuccess) return error;
  kept.release();
  return cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove);
}

// Memory that was outgrown is left as it is, for kernels or a graph that may still use it. As each is at least twice as
// large as the one before, all of a stream's together are less than twice the last.
cudaError_t grow(const Owner& owner, cudaGraph_t graph, int64_t counters_bytes, int64_t scratch_bytes, Slot* slot) {
  counters_bytes = std::max(counters_bytes, 2 * slot->memory.counters_bytes);
  scratch_bytes = std::max(scratch_bytes, 2 * slot->memory.scratch_bytes);
  Memory grown;
  if (!owner.is_capture || !take_spare(owner.device, counters_bytes, scratch_bytes, &grown)) {
    const cudaError_t error = make_memory(owner.device, counters_bytes, scratch_bytes, &grown);
    if (error != cudaSuccess) return error;
  }
  if (owner.is_capture) {
    const cudaError_t error = tie_to_graph(graph, owner, grown);
    if (error != cudaSuccess) return error;
  }
  const std::lock_guard lock(registry().mutex);
  slot->memory = grown;
  return cudaSuccess;
}

// graph: of the capture that the stream is in, if it is in one
cudaError_t find_owner(const CudaQueue& queue, Owner* owner, cudaGraph_t* graph) {
  const cudaStream_t stream = static_cast<cudaStream_t>(queue.stream);
  owner->device = queue.device;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamGetCaptureInfo(stream, &status, &owner->capture, graph);
  if (error != cudaSuccess) return error;
  owner->is_capture = status != cudaStreamCaptureStatusNone;
  if (owner->is_capture) {
    owner->stream = reinterpret_cast<uintptr_t>(stream);
    return cudaSuccess;
  }
  owner->capture = 0;
  const BesideCaptures beside;
  return cudaStreamGetId(stream, &owner->stream);
}

}  // namespace

MemoryHold::MemoryHold(const CudaQueue& queue, int64_t counters_bytes, int64_t scratch_bytes) {
  Owner owner;
  cudaGraph_t graph = nullptr;
  cudaError_t error = find_owner(queue, &owner, &graph);
  if (error == cudaSuccess) {
    const std::shared_ptr<Slot> slot = slot_of(owner);
    slot_ = slot;
    turn_ = std::unique_lock(slot->turn);
    if (!holds(slot->memory, counters_bytes, scratch_bytes)) {
      error = grow(owner, graph, counters_bytes, scratch_bytes, slot.get());
    }
    memory_ = slot->memory;
  }
  if (error == cudaErrorMemoryAllocation) throw std::bad_alloc();
  if (error != cudaSuccess) error_ = cudaGetErrorString(error);
}

std::vector<Memory> memory_in_use() {
  const std::lock_guard lock(registry().mutex);
  std::vector<Memory> all = registry().spare;
  for (const auto& [owner, slot] : registry().slots) {
    if (slot->memory.counters != nullptr) all.push_back(slot->memory);
  }
  return all;
}

}  // namespace pearl::cuda
