#include "common/scratch.h"

#include <cstdlib>
#include <new>

namespace pearl {
namespace {

constexpr std::size_t kAlignment = 64;

struct Buffer {
  void* data = nullptr;
  std::size_t bytes = 0;

  ~Buffer() { std::free(data); }

  void* grow(std::size_t wanted) {
    if (wanted <= bytes) return data;
    std::free(data);
    bytes = (wanted + kAlignment - 1) / kAlignment * kAlignment;
    data = std::aligned_alloc(kAlignment, bytes);
    if (data == nullptr) {
      bytes = 0;
      throw std::bad_alloc();
    }
    return data;
  }
};

}  // namespace

void* scratch(Scratch slot, std::size_t bytes) {
  thread_local Buffer buffers[static_cast<int>(Scratch::kCount)];
  return buffers[static_cast<int>(slot)].grow(bytes);
}

}  // namespace pearl
