// AVX-512 with VNNI: a register holds four inputs of sixteen outputs, and one instruction adds their four products to sixteen sums.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "kernels.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))

namespace alhena {
namespace {

bool IsSupported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

TARGET void Round(const float* x, const Rounded& out) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  // Compared as integers, where NaN is largest.
  const __m512i bits = _mm512_set1_epi32(0x7FFFFFFF);
  const int largest_bits = _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), bits),
                                                                    _mm512_and_si512(_mm512_castps_si512(b), bits)));
  float largest;
  std::memcpy(&largest, &largest_bits, sizeof largest);
  const __m512 inverse = _mm512_set1_ps(largest > kTiny ? 127 / largest : 0);
  const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), high = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out.values), _mm512_cvtsepi32_epi8(low));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out.values + 16), _mm512_cvtsepi32_epi8(high));
  const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
  *out.scale = largest * (1.0f / 127);
  *out.offset4 = -8 * sum;
  *out.offset8 = -128 * sum;
}

// Weights are prefetched so many bytes ahead: with its own prefetching alone the processor reads them at 85 % of the speed of memory.
constexpr int kAhead = 4096;

TARGET inline __m512i Four(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm512_set1_epi32(four);
}

// The values of a group of a tile as unsigned bytes: those of four inputs in each register.
template <int kBits>
TARGET inline __attribute__((always_inline)) void Unpack(const uint8_t* tile, __m512i* values) {
  if (kBits == 4) {
    const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const __m512i bytes = _mm512_loadu_si512(tile + 64 * v);
      values[v] = _mm512_and_si512(bytes, low);
      values[4 + v] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
    }
  } else {
    const __m512i sign = _mm512_set1_epi8(-128);
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) values[v] = _mm512_xor_si512(_mm512_loadu_si512(tile + 64 * v), sign);
  }
}

template <int kBits, int R>
TARGET void Tiles(const Weight& w, const Block& x, int64_t first_tile, int64_t last_tile) {
  const uint8_t* tile = w.packed + first_tile * w.groups * 64 * kBits;
  const uint16_t* scales = w.scales + first_tile * w.groups * kTile;
  for (int64_t t = first_tile; t < last_tile; ++t) {
    const int8_t* values = x.values;
    const float* x_scales = x.scales;
    const int32_t* offsets = kBits == 4 ? x.offsets4 : x.offsets8;
    __m512 sums[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sums[r] = _mm512_setzero_ps();
    for (int64_t g = 0; g < w.groups; ++g) {
      __m512i unpacked[8];
      Unpack<kBits>(tile, unpacked);
#pragma GCC unroll 8
      for (int v = 0; v < kBits; ++v) _mm_prefetch(tile + kAhead + 64 * v, _MM_HINT_T0);
      const __m512 w_scales = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        __m512i integers = _mm512_set1_epi32(offsets[r]);
#pragma GCC unroll 8
        for (int v = 0; v < 8; ++v) {
          integers = _mm512_dpbusd_epi32(integers, unpacked[v], Four(values + r * kGroup + 4 * v));
        }
        const __m512 scale = _mm512_mul_ps(w_scales, _mm512_set1_ps(x_scales[r]));
        sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers), scale, sums[r]);
      }
      tile += 64 * kBits;
      scales += kTile;
      values += R * kGroup;
      x_scales += R;
      offsets += R;
    }
    const int64_t left = w.outputs - t * kTile;
    const __mmask16 mask = left >= kTile ? 0xFFFF : (1 << left) - 1;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) _mm512_mask_storeu_ps(w.out + (x.first + r) * w.outputs + t * kTile, mask, sums[r]);
  }
}

using Function = void (*)(const Weight&, const Block&, int64_t, int64_t);

template <int kBits>
constexpr Function kTiles[kRows] = {
    Tiles<kBits, 1>,  Tiles<kBits, 2>,  Tiles<kBits, 3>,  Tiles<kBits, 4>, Tiles<kBits, 5>,  Tiles<kBits, 6>,
    Tiles<kBits, 7>,  Tiles<kBits, 8>,  Tiles<kBits, 9>,  Tiles<kBits, 10>, Tiles<kBits, 11>, Tiles<kBits, 12>,
    Tiles<kBits, 13>, Tiles<kBits, 14>, Tiles<kBits, 15>, Tiles<kBits, 16>};

void Multiply(const Weight& w, const Block& x, int64_t first_tile, int64_t last_tile) {
  (w.bits == 4 ? kTiles<4> : kTiles<8>)[x.rows - 1](w, x, first_tile, last_tile);
}

}  // namespace

const Kernels kAvx512 = {"avx512", IsSupported, Round, Multiply};

}  // namespace alhena

#endif
