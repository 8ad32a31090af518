#include "common/openmp.h"

#ifdef __linux__
#include <dlfcn.h>
#include <link.h>

#include <cstring>
#endif

namespace pearl {
namespace {

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
  look_up(handle, "omp_get_max_threads", openmp.max_threads);
  look_up(handle, "omp_pause_resource_all", openmp.pause_all);
  return openmp.run_team && openmp.max_threads;
}

OpenMP find_openmp() {
  OpenMP found;
  return dl_iterate_phdr(look_at, &found) ? found : OpenMP{};
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
