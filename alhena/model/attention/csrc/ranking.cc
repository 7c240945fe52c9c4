// The tokens of the largest scores of each sequence, of those that are allowed: scores of a large vocabulary are read once.

#include <algorithm>
#include <vector>

#include "loops.h"
#include "parallel.h"

namespace ffi = xla::ffi;

namespace alhena {
namespace {

// Scores that a thread reads at once.
constexpr int64_t kPart = 1 << 14;

// Scores, and which are allowed, of all sequences or of each.
struct Scores {
  const float* values;
  const int8_t* allowed;
  int64_t rows, size;
  bool one_mask;

  const float* row(int64_t i) const { return values + i * size; }
  const int8_t* mask(int64_t i) const { return allowed + (one_mask ? 0 : i * size); }
};

ffi::Error read_scores(const ffi::Buffer<ffi::F32>& values, const ffi::Buffer<ffi::PRED>& allowed, Scores* s) {
  auto v = values.dimensions(), a = allowed.dimensions();
  if (v.size() != 2 || a.size() != 2 || a[1] != v[1] || (a[0] != 1 && a[0] != v[0]))
    return ffi::Error(ffi::ErrorCode::kInvalidArgument, "scores and mask must be [sequences, vocabulary]");
  *s = {values.typed_data(), reinterpret_cast<const int8_t*>(allowed.typed_data()), v[0], v[1], a[0] == 1};
  return ffi::Error::Success();
}

ffi::Error find_largest(
    ffi::ThreadPool pool, ffi::Buffer<ffi::F32> values, ffi::Buffer<ffi::PRED> allowed, ffi::ResultBuffer<ffi::S32> out) {
  Scores s;
  if (ffi::Error error = read_scores(values, allowed, &s); error.failure()) return error;
  int64_t parts = (s.size + kPart - 1) / kPart;
  std::vector<float> best(s.rows * parts);
  std::vector<int64_t> at(s.rows * parts);
  auto one = [&](int64_t i) {
    int64_t row = i / parts, first = i % parts * kPart;
    at[i] = first + ALHENA_CHOOSE(largest)(s.row(row) + first, s.mask(row) + first, std::min(kPart, s.size - first), &best[i]);
  };
  if (s.rows * parts <= 2) for (int64_t i = 0; i < s.rows * parts; ++i) one(i);
  else Parallel(pool, s.rows * parts, one);
  for (int64_t row = 0; row < s.rows; ++row) {
    auto first = best.begin() + row * parts;
    out->typed_data()[row] = int32_t(at[std::max_element(first, first + parts) - best.begin()]);
  }
  return ffi::Error::Success();
}

bool is_before(const Ranked& a, const Ranked& b) { return a.score > b.score || (a.score == b.score && a.id < b.id); }

// The first ``count`` allowed tokens of a row by score, those of equal scores by id; then token 0 at -inf, where there are fewer.
void rank_row(const Scores& s, int64_t row, size_t count, float* values, int32_t* ids) {
  std::vector<Ranked> list;
  size_t space = 4 * count + 16;
  list.reserve(space);
  float limit = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < s.size;) {
    i = ALHENA_CHOOSE(append_larger)(s.row(row), s.mask(row), i, s.size, limit, list, space);
    if (list.size() <= count) continue;
    std::nth_element(list.begin(), list.begin() + count - 1, list.end(), is_before);
    list.resize(count);
    limit = list.back().score;
  }
  std::sort(list.begin(), list.end(), is_before);
  list.resize(count, {-std::numeric_limits<float>::infinity(), 0});
  for (size_t i = 0; i < count; ++i) values[i] = list[i].score, ids[i] = list[i].id;
}

ffi::Error rank(
    ffi::ThreadPool pool, ffi::Buffer<ffi::F32> values, ffi::Buffer<ffi::PRED> allowed, ffi::ResultBuffer<ffi::F32> top,
    ffi::ResultBuffer<ffi::S32> ids) {
  Scores s;
  if (ffi::Error error = read_scores(values, allowed, &s); error.failure()) return error;
  int64_t count = s.rows ? top->element_count() / s.rows : 0;
  if (s.rows && count < 1) return ffi::Error(ffi::ErrorCode::kInvalidArgument, "rank: no ranks");
  Parallel(pool, s.rows, [&](int64_t i) { rank_row(s, i, count, top->typed_data() + i * count, ids->typed_data() + i * count); });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    AlhenaLargest, find_largest,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::Buffer<ffi::F32>>().Arg<ffi::Buffer<ffi::PRED>>().Ret<ffi::Buffer<ffi::S32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    AlhenaRank, rank,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::Buffer<ffi::F32>>().Arg<ffi::Buffer<ffi::PRED>>().Ret<ffi::Buffer<ffi::F32>>()
        .Ret<ffi::Buffer<ffi::S32>>());

}  // namespace alhena
