// The matmul of one weight by a block of rounded activations, in one implementation for each instruction set.
//
// The layout of weights is that of alhena/model/quantized/layout.py. All implementations compute the same: exact integer sums of the
// 32 products of a group, then for each group in order  sum = fma(float(integer), scale_w · scale_x, sum).

#pragma once

#include <cstdint>

namespace alhena {

constexpr int kGroup = 32;
constexpr int kTile = 16;
// Rows of activations that share the unpacked values of a tile.
constexpr int kRows = 16;

// One weight, and where its result goes.
struct Weight {
  // [tiles, groups, bits, 16, 4]
  const uint8_t* packed;
  // float16 [tiles, groups, 16]
  const uint16_t* scales;
  // [rows, outputs]
  float* out;
  int64_t tiles, groups, outputs;
  int bits;
};

// Up to kRows rows of activations, interleaved by group.
struct Block {
  // [groups, rows, 32], -127..127
  const int8_t* values;
  // [groups, rows]
  const float* scales;
  // [groups, rows]: the correction of the integer sum for unsigned weights, -8 or -128 times the sum of the values
  const int32_t* offsets4;
  const int32_t* offsets8;
  // The first row in the result, and the number of rows.
  int64_t first, rows;
};

// Where one group of one row goes.
struct Rounded {
  int8_t* values;
  float* scale;
  int32_t* offset4;
  int32_t* offset8;
};

struct Kernels {
  const char* name;
  bool (*is_supported)();
  // Rounds the 32 activations of a group.
  void (*round)(const float* x, const Rounded& out);
  // Adds nothing: writes the results of some tiles.
  void (*multiply)(const Weight& w, const Block& x, int64_t first_tile, int64_t last_tile);
};

// The implementations that were compiled, fastest first; the last one is portable. Ends with a null pointer.
extern const Kernels* const kKernels[];

// Groups whose largest activation is smaller are rounded to zero: its inverse would not be finite.
constexpr float kTiny = 1e-30f;

#if defined(__x86_64__)
extern const Kernels kAvx512;
extern const Kernels kAvx2;
#elif defined(__aarch64__)
extern const Kernels kNeon;
#endif
extern const Kernels kPortable;

}  // namespace alhena
