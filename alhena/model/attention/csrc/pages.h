// The pages of all layers of one kind, as arguments of a custom call: keys, values, [their scales,] table of the sequences.
#pragma once

#include <algorithm>

#include "loops.h"
#include "xla/ffi/api/ffi.h"

namespace alhena {

struct Pages {
  Type type;
  void *keys, *values;
  // Of each token and head, of 8-bit ones.
  float *key_scales, *value_scales;
  int64_t layers, count, kv_heads, page, size;
  const int32_t* table;
  int64_t table_size;

  // Whether the kernels compute queries of so many heads of a size.
  bool fits(int64_t heads, int64_t head_size) const { return head_size % 16 == 0 && page == PAGE && size == head_size && heads % kv_heads == 0; }

  // Index of a token of a sequence among those of all layers, pages and heads.
  int64_t index(int64_t layer, int64_t sequence, int64_t head, int64_t position) const {
    int64_t at = std::min<int64_t>(position / PAGE, table_size - 1);
    int64_t number = std::clamp<int64_t>(table[sequence * table_size + at], 0, count - 1);
    return ((layer * count + number) * kv_heads + head) * PAGE + position % PAGE;
  }
};

// Pages whose arguments begin at an index, ``count`` of them.
template <class Args>
Pages pages_of(const Args& args, size_t first, size_t count) {
  auto buffer = [&](size_t i) { return *args.template get<xla::ffi::AnyBuffer>(first + i); };
  auto keys = buffer(0), values = buffer(1), table = buffer(count - 1);
  auto d = keys.dimensions();
  bool is_int8 = keys.element_type() == xla::ffi::S8;
  Type type = is_int8 ? Type::INT8 : keys.element_type() == xla::ffi::U16 ? Type::BF16 : Type::F32;
  auto scales = [&](size_t i) { return is_int8 ? buffer(i).template typed_data<float>() : nullptr; };
  return {type, keys.untyped_data(), values.untyped_data(), scales(2), scales(3), d[0], d[1], d[2], d[3], d[4],
          table.template typed_data<int32_t>(), table.dimensions()[1]};
}

}  // namespace alhena
