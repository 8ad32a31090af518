#include "common/parallel.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>

#ifdef __linux__
#include <dlfcn.h>
#include <link.h>
#endif

namespace pearl {
namespace {

struct OpenMP {
  // libgomp's entry, which libomp and Intel's runtime have too: runs a function on a team of threads.
  void (*run_team)(void (*function)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*pause_all)(int kind) = nullptr;
};

constexpr int kPauseSoft = 1;  // omp_pause_soft

#ifdef __linux__
template <typename Function>
void look_up(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
}

int look_at(dl_phdr_info* library, std::size_t, void* found) {
  const char* slash = std::strrchr(library->dlpi_name, '/');
  const char* name = slash ? slash + 1 : library->dlpi_name;
  if (std::strncmp(name, "libgomp", 7) && std::strncmp(name, "libomp", 6) && std::strncmp(name, "libiomp", 7)) return 0;
  void* handle = dlopen(library->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
  if (!handle) return 0;
  OpenMP& openmp = *static_cast<OpenMP*>(found);
  look_up(handle, "GOMP_parallel", openmp.run_team);
  look_up(handle, "omp_pause_resource_all", openmp.pause_all);
  return openmp.run_team != nullptr;
}

OpenMP find_openmp() {
  OpenMP found;
  dl_iterate_phdr(look_at, &found);
  return found;
}
#else
OpenMP find_openmp() { return {}; }
#endif

// That of torch, which is there before the first call.
const OpenMP& openmp() {
  static const OpenMP found = find_openmp();
  return found;
}

struct Work {
  int64_t count, pieces;
  void (*body)(void*, int64_t, int64_t);
  void* context;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
};

void take_pieces(void* data) {
  Work& work = *static_cast<Work*>(data);
  try {
    for (int64_t piece = work.next++; piece < work.pieces; piece = work.next++) {
      work.body(work.context, work.count * piece / work.pieces, work.count * (piece + 1) / work.pieces);
    }
  } catch (...) {  // it must not leave a thread of the team
    if (!work.failed.exchange(true)) work.error = std::current_exception();
  }
}

}  // namespace

void parallel_for(int64_t count, int64_t pieces, int threads, void (*body)(void*, int64_t, int64_t), void* context) {
  Work work;
  work.count = count;
  work.pieces = std::max<int64_t>(1, std::min(pieces, count));
  work.body = body;
  work.context = context;
  const auto team = static_cast<unsigned>(std::min<int64_t>(threads, work.pieces));
  if (team > 1 && openmp().run_team) {
    openmp().run_team(take_pieces, &work, team, 0);
  } else {
    take_pieces(&work);
  }
  if (work.error) std::rethrow_exception(work.error);
}

void release_threads() {
  if (openmp().pause_all) openmp().pause_all(kPauseSoft);
}

}  // namespace pearl
