#include "common/openmp.h"

#ifdef __linux__
#include <dlfcn.h>
#endif

namespace pearl {
namespace {

#ifdef __linux__
template <typename Function>
void look_up(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
}

// In torch and what it was linked with: a process may have other runtimes.
OpenMP find_openmp() {
  void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (!torch) return {};
  OpenMP found;
  look_up(torch, "GOMP_parallel", found.run_team);
  look_up(torch, "omp_get_max_threads", found.max_threads);
  look_up(torch, "omp_pause_resource_all", found.pause_all);
  return found.run_team && found.max_threads ? found : OpenMP{};
}
#else
OpenMP find_openmp() { return {}; }
#endif

}  // namespace

const OpenMP& openmp() {
  static const OpenMP found = find_openmp();
  return found;
}

}  // namespace pearl
