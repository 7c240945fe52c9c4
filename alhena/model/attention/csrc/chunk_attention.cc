// Attention of several tokens of each sequence to the pages of its sequence, which hold their keys and values already. The reference is
// paged_cache.py.
//
//     tokens × heads of queries ─► rows, in blocks ─► a block reads page after page, with an online softmax in float32
//
// What a row reads depends neither on the other rows nor on their number: a page outside its range of positions changes nothing.

#include <algorithm>
#include <limits>
#include <vector>

#include "loops.h"
#include "pages.h"
#include "parallel.h"

namespace ffi = xla::ffi;

namespace alhena {
namespace {

// Rows that read a page together, at most.
constexpr int64_t BLOCK = 128;

struct Call {
  int64_t batch, length, heads, size;
  const float* q;
  // The first position that each token attends to, and the one after the last.
  const int32_t *first, *end;
  Pages pages;
  int64_t layer;
  float scale, cap;
  float* out;

  int64_t group() const { return heads / pages.kv_heads; }
  int64_t rows() const { return length * group(); }

  // Some rows of one head of keys of one sequence, which is the stream; row r is query head r % group of token r / group.
  void read(int64_t stream, int64_t start, int64_t rows) const {
    int64_t sequence = stream / pages.kv_heads, head = stream % pages.kv_heads;
    auto token = [&](int64_t r) { return sequence * length + (start + r) / group(); };
    auto at = [&](int64_t r) { return (token(r) * heads + head * group() + (start + r) % group()) * size; };
    std::vector<float> floats(rows * (2 * size + 2)), scratch(size * PAGE + rows * (PAGE + size + 1));
    std::vector<int32_t> ranges(2 * rows);
    float *queries = floats.data(), *read = queries + rows * size, *maximum = read + rows * size, *total = maximum + rows;
    int64_t lowest = std::numeric_limits<int64_t>::max(), highest = 0;
    for (int64_t r = 0; r < rows; ++r) {
      std::copy(q + at(r), q + at(r) + size, queries + r * size);
      maximum[r] = -std::numeric_limits<float>::infinity();
      int32_t from = ranges[r] = first[token(r)], to = ranges[rows + r] = end[token(r)];
      if (from >= to) continue;
      lowest = std::min<int64_t>(lowest, from), highest = std::max<int64_t>(highest, to);
    }
    Rows a{queries, ranges.data(), ranges.data() + rows, rows, size, scale, cap, maximum, total, read};
    for (int64_t position = lowest / PAGE * PAGE; position < highest; position += PAGE)
      read_page(a, position, pages.index(layer, sequence, head, position), scratch.data());
    for (int64_t r = 0; r < rows; ++r) {
      float inverse = total[r] > 0 ? 1 / total[r] : 0;
      for (int64_t i = 0; i < size; ++i) out[at(r) + i] = read[r * size + i] * inverse;
    }
  }

  void read_page(const Rows& a, int64_t position, int64_t index, float* scratch) const {
    int64_t from = index * size;
    if (pages.type == Type::F32)
      ALHENA_CHOOSE(read_float)(a, position, static_cast<float*>(pages.keys) + from, static_cast<float*>(pages.values) + from, scratch);
    else if (pages.type == Type::BF16)
      ALHENA_CHOOSE(read_bfloat16)(a, position, static_cast<uint16_t*>(pages.keys) + from, static_cast<uint16_t*>(pages.values) + from, scratch);
    else
      ALHENA_CHOOSE(read_int8)(a, position, static_cast<int8_t*>(pages.keys) + from, static_cast<int8_t*>(pages.values) + from,
                pages.key_scales + index, pages.value_scales + index, scratch);
  }
};

// Arguments: queries [B, L, N, H], first position of each token's range and the one after its end [B, L], index of the layer, then keys,
// values, [their scales,] table. Result: heads [B, L, N, H].
ffi::Error attend_chunk(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, float scale, float cap) {
  constexpr size_t FIXED = 4;
  auto error = [](const char* what) { return ffi::Error(ffi::ErrorCode::kInvalidArgument, what); };
  if (args.size() < FIXED + 3) return error("attend_chunk: arguments are missing");
  auto q = *args.get<ffi::AnyBuffer>(0);
  auto integers = [&](size_t i) { return args.get<ffi::AnyBuffer>(i)->typed_data<int32_t>(); };
  Pages pages = pages_of(args, FIXED, args.size() - FIXED);
  int64_t layer = std::clamp<int64_t>(integers(3)[0], 0, pages.layers - 1);
  auto d = q.dimensions();
  Call call{d[0], d[1], d[2], d[3], q.typed_data<float>(), integers(1), integers(2), pages, layer, scale, cap,
            rets.get<ffi::AnyBuffer>(0).value()->typed_data<float>()};
  if (!pages.fits(call.heads, call.size)) return error("attend_chunk: shapes that do not fit");
  // Every thread gets some rows; a block converts a page once, so blocks are not small.
  int64_t rows = call.rows(), streams = call.batch * pages.kv_heads, per_stream = (pool.num_threads() + streams - 1) / streams;
  int64_t block = std::clamp<int64_t>((rows / per_stream + 3) / 4 * 4, std::min<int64_t>(rows, 16), BLOCK), blocks = (rows + block - 1) / block;
  Parallel(pool, streams * blocks, [&](int64_t i) {
    int64_t start = i % blocks * block;
    call.read(i / blocks, start, std::min(block, rows - start));
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    AlhenaAttendChunk, attend_chunk,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attr<float>("scale").Attr<float>("cap"));

}  // namespace alhena
