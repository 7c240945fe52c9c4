// Attention of several tokens of each sequence to the pages of its sequence, which hold their keys and values already. The reference is
// paged_cache.py.
//
//     tokens × heads of queries ─► rows, in blocks ─► a block reads page after page, with an online softmax in float32
//
// What a row reads depends neither on the other rows nor on their number: a page outside its range of positions changes nothing.

#include <cmath>
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

struct Shape {
  int64_t batch, length, heads, size;
};

// One block of rows of one head of keys of one sequence; row r is query head r % group of token r / group.
void read(const Shape& s, const Pages& p, int64_t layer, Rows a, const float* q, float* out, const int32_t* first, const int32_t* end,
          int64_t sequence, int64_t head, int64_t start) {
  int64_t group = s.heads / p.kv_heads;
  std::vector<float> rows(2 * a.rows * s.size), sums(2 * a.rows), scratch(s.size * PAGE + a.rows * (PAGE + s.size + 1));
  std::vector<int32_t> ranges(2 * a.rows);
  auto at = [&](int64_t r) {
    int64_t token = (start + r) / group, of_group = (start + r) % group;
    return ((sequence * s.length + token) * s.heads + head * group + of_group) * s.size;
  };
  int64_t lowest = std::numeric_limits<int64_t>::max(), highest = 0;
  for (int64_t r = 0; r < a.rows; ++r) {
    std::copy(q + at(r), q + at(r) + s.size, rows.data() + r * s.size);
    int64_t token = sequence * s.length + (start + r) / group;
    ranges[r] = first[token], ranges[a.rows + r] = end[token];
    if (first[token] >= end[token]) continue;
    lowest = std::min<int64_t>(lowest, first[token]), highest = std::max<int64_t>(highest, end[token]);
  }
  std::fill(sums.begin(), sums.begin() + a.rows, -std::numeric_limits<float>::infinity());
  a.q = rows.data(), a.out = rows.data() + a.rows * s.size, a.size = s.size;
  a.maximum = sums.data(), a.total = sums.data() + a.rows, a.first = ranges.data(), a.end = ranges.data() + a.rows;
  for (int64_t position = lowest / PAGE * PAGE; position < highest; position += PAGE) {
    int64_t of_page = p.index(layer, sequence, head, position), from = of_page * s.size;
    if (p.type == Type::F32)
      ALHENA_CHOOSE(read_float)(a, position, static_cast<float*>(p.keys) + from, static_cast<float*>(p.values) + from, scratch.data());
    else if (p.type == Type::BF16)
      ALHENA_CHOOSE(read_bfloat16)(a, position, static_cast<uint16_t*>(p.keys) + from, static_cast<uint16_t*>(p.values) + from, scratch.data());
    else
      ALHENA_CHOOSE(read_int8)(a, position, static_cast<int8_t*>(p.keys) + from, static_cast<int8_t*>(p.values) + from,
                p.key_scales + of_page, p.value_scales + of_page, scratch.data());
  }
  for (int64_t r = 0; r < a.rows; ++r) {
    float inverse = a.total[r] > 0 ? 1 / a.total[r] : 0;
    for (int64_t i = 0; i < s.size; ++i) out[at(r) + i] = a.out[r * s.size + i] * inverse;
  }
}

// Arguments: queries [B, L, N, H], first position of each token's range and the one after its end [B, L], index of the layer, then keys,
// values, [their scales,] table. Result: heads [B, L, N, H].
ffi::Error attend_chunk(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, float scale, float cap) {
  constexpr size_t FIXED = 4;
  auto error = [](const char* what) { return ffi::Error(ffi::ErrorCode::kInvalidArgument, what); };
  if (args.size() < FIXED + 3) return error("attend_chunk: arguments are missing");
  auto q = *args.get<ffi::AnyBuffer>(0);
  auto integers = [&](size_t i) { return args.get<ffi::AnyBuffer>(i)->typed_data<int32_t>(); };
  auto d = q.dimensions();
  Shape shape{d[0], d[1], d[2], d[3]};
  Pages pages = pages_of(args, FIXED, args.size() - FIXED);
  if (shape.size % 16 || pages.page != PAGE || pages.size != shape.size || shape.heads % pages.kv_heads)
    return error("attend_chunk: shapes that do not fit");
  int64_t layer = std::clamp<int64_t>(integers(3)[0], 0, pages.layers - 1), rows = shape.length * (shape.heads / pages.kv_heads);
  // Every thread gets some; a block converts a page once, so blocks are not small.
  int64_t streams = shape.batch * pages.kv_heads, per_stream = (pool.num_threads() + streams - 1) / streams;
  int64_t block = std::clamp<int64_t>((rows / per_stream + 3) / 4 * 4, std::min<int64_t>(rows, 16), BLOCK), blocks = (rows + block - 1) / block;
  float* out = rets.get<ffi::AnyBuffer>(0).value()->typed_data<float>();
  Parallel(pool, streams * blocks, [&](int64_t i) {
    int64_t stream = i / blocks, start = i % blocks * block;
    Rows a{};
    a.rows = std::min(block, rows - start), a.scale = scale, a.cap = cap;
    read(shape, pages, layer, a, q.typed_data<float>(), out, integers(1), integers(2), stream / pages.kv_heads, stream % pages.kv_heads, start);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    AlhenaAttendChunk, attend_chunk,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attr<float>("scale").Attr<float>("cap"));

}  // namespace alhena
