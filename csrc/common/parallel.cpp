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

// libgomp's entry, which libomp and Intel's runtime have too: runs a function on a team of threads.
using RunTeam = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

#ifdef __linux__
int find_openmp(dl_phdr_info* library, std::size_t, void* found) {
  const char* slash = std::strrchr(library->dlpi_name, '/');
  const char* name = slash ? slash + 1 : library->dlpi_name;
  if (std::strncmp(name, "libgomp", 7) && std::strncmp(name, "libomp", 6) && std::strncmp(name, "libiomp", 7)) return 0;
  void* handle = dlopen(library->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
  void* symbol = handle ? dlsym(handle, "GOMP_parallel") : nullptr;
  *static_cast<RunTeam*>(found) = reinterpret_cast<RunTeam>(symbol);
  return symbol != nullptr;
}

RunTeam find_team() {
  RunTeam found = nullptr;
  dl_iterate_phdr(find_openmp, &found);
  return found;
}
#else
RunTeam find_team() { return nullptr; }
#endif

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
  static const RunTeam run_team = find_team();
  Work work;
  work.count = count;
  work.pieces = std::max<int64_t>(1, std::min(pieces, count));
  work.body = body;
  work.context = context;
  const auto team = static_cast<unsigned>(std::min<int64_t>(threads, work.pieces));
  if (team > 1 && run_team) {
    run_team(take_pieces, &work, team, 0);
  } else {
    take_pieces(&work);
  }
  if (work.error) std::rethrow_exception(work.error);
}

}  // namespace pearl
