// Types of the inner loops of this folder, and those loops compiled for several instruction sets.
#pragma once

#include <cstdint>
#include <vector>

namespace alhena {

constexpr int64_t PAGE = 128;
// Queries of a head of keys that are computed together.
constexpr int64_t TOGETHER = 4;

// Of stored keys and values; bfloat16 as uint16.
enum class Type { F32, BF16, INT8 };

// What one page gives to the queries of a group: maxima, sums, and weighted sums of values.
struct Partial {
  float *maximum, *total, *out;
};

struct Queries {
  const float* q;
  int64_t group, size;
  float scale, cap;
};

// Queries of one head of keys, the range of positions that each reads, and what they have read so far: maximum and sum of the
// exponentials, weighted sum of values.
struct Rows {
  const float* q;
  const int32_t *first, *end;
  int64_t rows, size;
  float scale, cap;
  float *maximum, *total, *out;
};

// A token and its score.
struct Ranked {
  float score;
  int32_t id;
};

// A block of outputs of a matmul.
struct Block {
  const float* x;
  // Of a bfloat16 weight: the same rows, rounded.
  const uint16_t* x16;
  const void* w;
  float* y;
  int64_t rows, width, inputs, outputs;
  bool transposed;
};

}  // namespace alhena

#define ALHENA_LOOPS "kernels.h"
#include "targets.h"
