// AVX2: a register holds four inputs of eight outputs, half of those of a tile.

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels.h"

#define TARGET __attribute__((target("avx2,fma,f16c")))

namespace alhena {
namespace {

bool IsSupported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

TARGET void Round(const float* x, const Rounded& out) {
  const __m256i bits = _mm256_set1_epi32(0x7FFFFFFF);
  __m256i largest8 = _mm256_setzero_si256();
  // Compared as integers, where NaN is largest.
  for (int i = 0; i < 4; ++i) {
    const __m256i value = _mm256_castps_si256(_mm256_loadu_ps(x + 8 * i));
    largest8 = _mm256_max_epi32(largest8, _mm256_and_si256(value, bits));
  }
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest8);
  const int32_t largest_bits = *std::max_element(lanes, lanes + 8);
  float largest;
  std::memcpy(&largest, &largest_bits, sizeof largest);
  const __m256 inverse = _mm256_set1_ps(largest > kTiny ? 127 / largest : 0);
  __m256i q[4], sum8 = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i) {
    q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
    sum8 = _mm256_add_epi32(sum8, q[i]);
  }
  // Both instructions pack the halves of registers separately.
  const __m256i packed =
      _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  const __m256i ordered = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.values), ordered);
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum8);
  int32_t sum = 0;
  for (int32_t lane : lanes) sum += lane;
  *out.scale = largest * (1.0f / 127);
  *out.offset4 = -8 * sum;
  *out.offset8 = -128 * sum;
}

TARGET inline __attribute__((always_inline)) __m256i Four(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four);
}

// Integer sums of a group: of R rows, and eight outputs of a tile.
template <int R>
TARGET inline __attribute__((always_inline)) void Dots4(const uint8_t* half, const int8_t* x, __m256i* sums) {
  const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sums[r] = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half + 64 * v));
    const __m256i first = _mm256_and_si256(bytes, low), second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
    // 16 bits suffice: eight times two products of at most 15 · 127.
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const int8_t* row = x + r * kGroup + 4 * v;
      sums[r] = _mm256_add_epi16(sums[r], _mm256_add_epi16(_mm256_maddubs_epi16(first, Four(row)),
                                                           _mm256_maddubs_epi16(second, Four(row + 16))));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sums[r] = _mm256_madd_epi16(sums[r], _mm256_set1_epi16(1));
}

template <int R>
TARGET inline __attribute__((always_inline)) void Dots8(const uint8_t* half, const int8_t* x, __m256i* sums) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sums[r] = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) {
    const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half + 64 * v));
    // Unsigned times signed: the sign of a weight moves to the activation. Two products of at most 128 · 127 fit in 16 bits.
    const __m256i sizes = _mm256_abs_epi8(weights);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m256i signed_x = _mm256_sign_epi8(Four(x + r * kGroup + 4 * v), weights);
      const __m256i pairs = _mm256_maddubs_epi16(sizes, signed_x);
      sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
  }
}

// R rows of a block, from row ``r0``, times half a tile.
template <int kBits, int R>
TARGET void HalfTile(const Weight& w, const Block& x, int64_t t, int half, int64_t r0) {
  const uint8_t* tile = w.packed + t * w.groups * 64 * kBits + half * 32;
  const uint16_t* scales = w.scales + t * w.groups * kTile + half * 8;
  __m256 sums[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sums[r] = _mm256_setzero_ps();
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t at = g * x.rows + r0;
    __m256i integers[R];
    if (kBits == 4) {
      Dots4<R>(tile, x.values + at * kGroup, integers);
    } else {
      Dots8<R>(tile, x.values + at * kGroup, integers);
    }
    const __m256 w_scales = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      if (kBits == 4) integers[r] = _mm256_add_epi32(integers[r], _mm256_set1_epi32(x.offsets4[at + r]));
      const __m256 scale = _mm256_mul_ps(w_scales, _mm256_set1_ps(x.scales[at + r]));
      sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(integers[r]), scale, sums[r]);
    }
    tile += 64 * kBits;
    scales += kTile;
  }
  const int64_t first = t * kTile + half * 8, left = std::min<int64_t>(8, w.outputs - first);
  alignas(32) float stored[8];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    _mm256_store_ps(stored, sums[r]);
    if (left > 0) std::memcpy(w.out + (x.first + r0 + r) * w.outputs + first, stored, left * sizeof(float));
  }
}

template <int kBits>
void Tiles(const Weight& w, const Block& x, int64_t first_tile, int64_t last_tile) {
  for (int64_t t = first_tile; t < last_tile; ++t) {
    for (int half = 0; half < 2; ++half) {
      int64_t r = 0;
      for (; r + 4 <= x.rows; r += 4) HalfTile<kBits, 4>(w, x, t, half, r);
      if (x.rows - r == 3) HalfTile<kBits, 3>(w, x, t, half, r);
      if (x.rows - r == 2) HalfTile<kBits, 2>(w, x, t, half, r);
      if (x.rows - r == 1) HalfTile<kBits, 1>(w, x, t, half, r);
    }
  }
}

void Multiply(const Weight& w, const Block& x, int64_t first_tile, int64_t last_tile) {
  (w.bits == 4 ? Tiles<4> : Tiles<8>)(w, x, first_tile, last_tile);
}

}  // namespace

const Kernels kAvx2 = {"avx2", IsSupported, Round, Multiply};

}  // namespace alhena

#endif
