// The OpenMP runtime that torch has loaded, without being built against one.

#pragma once

namespace pearl {

struct OpenMP {
  // libgomp's entry, which libomp and Intel's runtime have too: runs a function on a team of threads.
  void (*run_team)(void (*function)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*max_threads)() = nullptr;  // of the calling thread's teams
  int (*pause_all)(int kind) = nullptr;
};

constexpr int kOpenMPPauseSoft = 1;  // omp_pause_soft

// All null where there is none. torch's is there before the first call.
const OpenMP& openmp();

}  // namespace pearl
