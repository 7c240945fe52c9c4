// Plain C++, for any processor, and the reference of the others.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace alhena {
namespace {

bool Always() { return true; }

float FromHalf(uint16_t half) {
  uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31, mantissa = half & 0x3FFu, bits;
  if (exponent == 0) {
    float value = std::ldexp(static_cast<float>(mantissa), -24);
    return sign ? -value : value;
  }
  bits = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | mantissa << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void Round(const float* x, const Rounded& out) {
  float largest = 0;
  for (int i = 0; i < kGroup; ++i) {
    const float size = std::fabs(x[i]);
    // NaN remains.
    if (!(size <= largest) && !std::isnan(largest)) largest = size;
  }
  const float inverse = largest > kTiny ? 127 / largest : 0;
  int32_t sum = 0;
  for (int i = 0; i < kGroup; ++i) {
    const float value = std::nearbyint(x[i] * inverse);
    const int rounded = value >= -127 && value <= 127 ? static_cast<int>(value) : 0;
    out.values[i] = static_cast<int8_t>(rounded);
    sum += rounded;
  }
  *out.scale = largest * (1.0f / 127);
  *out.offset4 = -8 * sum;
  *out.offset8 = -128 * sum;
}

int Dot4(const uint8_t* tile, int output, const int8_t* x) {
  int sum = 0;
  for (int i = 0; i < kGroup / 2; ++i) {
    const uint8_t byte = tile[i / 4 * 4 * kTile + output * 4 + i % 4];
    sum += (byte & 15) * x[i] + (byte >> 4) * x[kGroup / 2 + i];
  }
  return sum;
}

int Dot8(const uint8_t* tile, int output, const int8_t* x) {
  int sum = 0;
  for (int i = 0; i < kGroup; ++i) {
    sum += (tile[i / 4 * 4 * kTile + output * 4 + i % 4] ^ 0x80) * x[i];
  }
  return sum;
}

void Multiply(const Weight& w, const Block& x, int64_t first_tile, int64_t last_tile) {
  const int64_t tile_bytes = 64 * w.bits;
  for (int64_t t = first_tile; t < last_tile; ++t) {
    const int outputs = static_cast<int>(std::min<int64_t>(kTile, w.outputs - t * kTile));
    for (int64_t r = 0; r < x.rows; ++r) {
      float sums[kTile] = {};
      for (int64_t g = 0; g < w.groups; ++g) {
        const int64_t at = g * x.rows + r;
        const uint8_t* tile = w.packed + (t * w.groups + g) * tile_bytes;
        const uint16_t* scales = w.scales + (t * w.groups + g) * kTile;
        const int8_t* values = x.values + at * kGroup;
        for (int o = 0; o < outputs; ++o) {
          const int integer =
              w.bits == 4 ? Dot4(tile, o, values) + x.offsets4[at] : Dot8(tile, o, values) + x.offsets8[at];
          sums[o] = std::fma(static_cast<float>(integer), FromHalf(scales[o]) * x.scales[at], sums[o]);
        }
      }
      std::memcpy(w.out + (x.first + r) * w.outputs + t * kTile, sums, outputs * sizeof(float));
    }
  }
}

}  // namespace

const Kernels kPortable = {"portable", Always, Round, Multiply};

const Kernels* const kKernels[] = {
#if defined(__x86_64__)
    &kAvx512, &kAvx2,
#elif defined(__aarch64__)
    &kNeon,
#endif
    &kPortable, nullptr};

}  // namespace alhena
