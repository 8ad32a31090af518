#pragma once

// Functions shared by all builds of the CPU kernels must never be emitted out of line: the linker keeps one copy of an
// inline function, and if that is the AVX-512 one, older processors crash in code that looks portable.
#define PEARL_INLINE inline __attribute__((always_inline))

#ifdef __CUDACC__
#define PEARL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PEARL_HOST_DEVICE PEARL_INLINE
#endif
