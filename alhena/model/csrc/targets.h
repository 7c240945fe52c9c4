// The inner loops of the file ALHENA_LOOPS, compiled for several instruction sets; the best one is chosen when the library is loaded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace alhena {

constexpr float EPSILON = 1e-6f;

// The compiler defines no macros for the pragmas below.
#define ALHENA_AVX512 0
namespace baseline {
namespace {
#include "vectors.h"
#include ALHENA_LOOPS
}  // namespace
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
namespace {
#include "vectors.h"
#include ALHENA_LOOPS
}  // namespace
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#undef ALHENA_AVX512
#define ALHENA_AVX512 1
namespace avx512 {
namespace {
#include "vectors.h"
#include ALHENA_LOOPS
}  // namespace
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,avx512bf16,prefer-vector-width=512")
#undef ALHENA_AVX512
#define ALHENA_AVX512 2
namespace avx512_bf16 {
namespace {
#include "vectors.h"
#include ALHENA_LOOPS
}  // namespace
}
#pragma GCC pop_options
#define ALHENA_CHOOSE(name) (level() == 3 ? avx512_bf16::name : level() == 2 ? avx512::name : level() == 1 ? avx2::name : baseline::name)

// The instruction set of this processor.
inline int level() {
  static const int found = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                                   __builtin_cpu_supports("avx512vl")
                               ? 2 + bool(__builtin_cpu_supports("avx512bf16"))
                           : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1
                                                                                            : 0;
  return found;
}
#else
#define ALHENA_CHOOSE(name) (baseline::name)
#endif

}  // namespace alhena
