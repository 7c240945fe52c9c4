// Rounded activations, and the division of the tiles of weights among the threads of XLA's pool.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace alhena {

// Multiply-adds that are not worth a second thread.
constexpr int64_t kSmall = 1 << 17;

// Rounded activations of all rows, as blocks of up to kRows.
struct Activations {
  std::vector<int8_t> values;
  std::vector<float> scales;
  std::vector<int32_t> offsets4, offsets8;
  int64_t rows, groups;

  void Resize(int64_t new_rows, int64_t new_groups) {
    rows = new_rows;
    groups = new_groups;
    const size_t size = static_cast<size_t>(rows * groups);
    if (scales.size() >= size) return;
    values.resize(size * kGroup);
    scales.resize(size);
    offsets4.resize(size);
    offsets8.resize(size);
  }

  int64_t blocks() const { return (rows + kRows - 1) / kRows; }

  Block block(int64_t i) const {
    const int64_t first = i * kRows, at = first * groups;
    return {values.data() + at * kGroup, scales.data() + at,           offsets4.data() + at,
            offsets8.data() + at,        first, std::min<int64_t>(kRows, rows - first)};
  }

  // Rounds a group of a row.
  void Round(const Kernels& kernels, const float* x, int64_t row, int64_t group) {
    const int64_t first = row / kRows * kRows, count = std::min<int64_t>(kRows, rows - first);
    const int64_t at = first * groups + group * count + row - first;
    kernels.round(x, {values.data() + at * kGroup, &scales[at], &offsets4[at], &offsets8[at]});
  }

  void RoundRow(const Kernels& kernels, const float* x, int64_t row) {
    for (int64_t g = 0; g < groups; ++g) Round(kernels, x + g * kGroup, row, g);
  }
};

// Some tiles of one weight.
struct Part {
  const Weight* weight;
  int64_t first, last;
};

// Divides the tiles of all weights into parts of about the same work, several for each thread.
inline std::vector<Part> Divide(const std::vector<Weight>& weights, int64_t threads) {
  int64_t total = 0;
  for (const Weight& w : weights) total += w.tiles * w.groups * w.bits;
  const int64_t target = std::max<int64_t>(total / (threads * 4), 1);
  std::vector<Part> parts;
  for (const Weight& w : weights) {
    const int64_t step = std::max<int64_t>(target / (w.groups * w.bits), 1);
    for (int64_t t = 0; t < w.tiles; t += step) parts.push_back({&w, t, std::min(t + step, w.tiles)});
  }
  return parts;
}

// Function of each index; without threads where it is too little work for them.
template <typename F>
void Each(xla::ffi::ThreadPool& pool, bool alone, int64_t count, const F& function) {
  if (!alone) return Parallel(pool, count, function);
  for (int64_t i = 0; i < count; ++i) function(i);
}

// Rounds rows of activations, some rows at a time.
inline void RoundRows(xla::ffi::ThreadPool& pool, bool alone, const Kernels& kernels, const float* x, Activations& a) {
  const int64_t step = 4;
  Each(pool, alone || a.rows <= step, (a.rows + step - 1) / step, [&](int64_t i) {
    for (int64_t r = i * step; r < std::min(a.rows, (i + 1) * step); ++r) a.RoundRow(kernels, x + r * a.groups * kGroup, r);
  });
}

// The activations times each weight.
inline void MultiplyRounded(xla::ffi::ThreadPool& pool, bool alone, const Kernels& kernels, const Activations& a,
                            const std::vector<Weight>& weights) {
  const std::vector<Part> parts = Divide(weights, alone ? 1 : pool.num_threads());
  Each(pool, alone, static_cast<int64_t>(parts.size()), [&](int64_t i) {
    const Part& part = parts[i];
    // A tile stays in the cache for all blocks of rows.
    const int64_t step = a.blocks() == 1 ? part.last - part.first : 1;
    for (int64_t t = part.first; t < part.last; t += step) {
      for (int64_t b = 0; b < a.blocks(); ++b) kernels.multiply(*part.weight, a.block(b), t, t + step);
    }
  });
}

}  // namespace alhena
