// NEON with dot products: a register holds four inputs of four outputs, a quarter of those of a tile.

#if defined(__aarch64__)

#include <arm_neon.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <algorithm>
#include <cstring>

#include "kernels.h"

#if defined(__clang__)
#define TARGET __attribute__((target("dotprod")))
#else
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

namespace alhena {
namespace {

bool IsSupported() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;
#endif
}

TARGET void Round(const float* x, const Rounded& out) {
  uint32x4_t largest4 = vdupq_n_u32(0);
  // Compared as integers, where NaN is largest.
  for (int i = 0; i < 8; ++i) {
    largest4 = vmaxq_u32(largest4, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + 4 * i))));
  }
  const uint32_t largest_bits = vmaxvq_u32(largest4);
  float largest;
  std::memcpy(&largest, &largest_bits, sizeof largest);
  const float inverse = largest > kTiny ? 127 / largest : 0;
  int32_t sum = 0;
  for (int i = 0; i < 2; ++i) {
    int16x4_t q[4];
    for (int j = 0; j < 4; ++j) {
      q[j] = vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 16 * i + 4 * j), inverse)));
    }
    const int8x16_t bytes =
        vcombine_s8(vqmovn_s16(vcombine_s16(q[0], q[1])), vqmovn_s16(vcombine_s16(q[2], q[3])));
    vst1q_s8(out.values + 16 * i, bytes);
    sum += vaddlvq_s8(bytes);
  }
  *out.scale = largest * (1.0f / 127);
  *out.offset4 = -8 * sum;
  *out.offset8 = -128 * sum;
}

template <int kBits>
TARGET inline __attribute__((always_inline)) void Unpack(const uint8_t* quarter, int8x16_t* values) {
  if (kBits == 4) {
    const int8x16_t eight = vdupq_n_s8(8);
    for (int v = 0; v < 4; ++v) {
      const uint8x16_t bytes = vld1q_u8(quarter + 64 * v);
      values[v] = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))), eight);
      values[4 + v] = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)), eight);
    }
  } else {
    for (int v = 0; v < 8; ++v) values[v] = vreinterpretq_s8_u8(vld1q_u8(quarter + 64 * v));
  }
}

// R rows of a block, from row ``r0``, times a tile.
template <int kBits, int R>
TARGET void Tile(const Weight& w, const Block& x, int64_t t, int64_t r0) {
  const uint8_t* tile = w.packed + t * w.groups * 64 * kBits;
  const uint16_t* scales = w.scales + t * w.groups * kTile;
  float32x4_t sums[R][4];
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < 4; ++i) sums[r][i] = vdupq_n_f32(0);
  }
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t at = g * x.rows + r0;
    const int8_t* row = x.values + at * kGroup;
    for (int i = 0; i < 4; ++i) {
      int8x16_t values[8];
      Unpack<kBits>(tile + 16 * i, values);
      const float32x4_t w_scales = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(scales + 4 * i)));
      for (int r = 0; r < R; ++r) {
        const int8x16_t a = vld1q_s8(row + r * kGroup), b = vld1q_s8(row + r * kGroup + 16);
        int32x4_t integers = vdupq_n_s32(0);
        integers = vdotq_laneq_s32(integers, values[0], a, 0);
        integers = vdotq_laneq_s32(integers, values[1], a, 1);
        integers = vdotq_laneq_s32(integers, values[2], a, 2);
        integers = vdotq_laneq_s32(integers, values[3], a, 3);
        integers = vdotq_laneq_s32(integers, values[4], b, 0);
        integers = vdotq_laneq_s32(integers, values[5], b, 1);
        integers = vdotq_laneq_s32(integers, values[6], b, 2);
        integers = vdotq_laneq_s32(integers, values[7], b, 3);
        sums[r][i] = vfmaq_f32(sums[r][i], vcvtq_f32_s32(integers), vmulq_n_f32(w_scales, x.scales[at + r]));
      }
    }
    tile += 64 * kBits;
    scales += kTile;
  }
  const int64_t left = std::min<int64_t>(kTile, w.outputs - t * kTile);
  for (int r = 0; r < R; ++r) {
    float stored[kTile];
    for (int i = 0; i < 4; ++i) vst1q_f32(stored + 4 * i, sums[r][i]);
    std::memcpy(w.out + (x.first + r0 + r) * w.outputs + t * kTile, stored, left * sizeof(float));
  }
}

template <int kBits>
void Tiles(const Weight& w, const Block& x, int64_t first_tile, int64_t last_tile) {
  for (int64_t t = first_tile; t < last_tile; ++t) {
    int64_t r = 0;
    for (; r + 4 <= x.rows; r += 4) Tile<kBits, 4>(w, x, t, r);
    if (x.rows - r == 3) Tile<kBits, 3>(w, x, t, r);
    if (x.rows - r == 2) Tile<kBits, 2>(w, x, t, r);
    if (x.rows - r == 1) Tile<kBits, 1>(w, x, t, r);
  }
}

void Multiply(const Weight& w, const Block& x, int64_t first_tile, int64_t last_tile) {
  (w.bits == 4 ? Tiles<4> : Tiles<8>)(w, x, first_tile, last_tile);
}

}  // namespace

const Kernels kNeon = {"neon", IsSupported, Round, Multiply};

}  // namespace alhena

#endif
