// Attention of one token of each sequence to the pages of its sequence, with what comes before it: norms of queries, keys and values,
// RoPE, and the keys and values written to their page. The reference is paged_cache.py.
//
// Every page gives a maximum, a sum and a weighted sum of values; they are combined in the order of the pages. So the result of a sequence
// depends neither on the others nor on the number of threads.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "loops.h"
#include "pages.h"
#include "parallel.h"

namespace ffi = xla::ffi;

namespace alhena {
namespace {

// One page of one head of keys of one sequence.
struct Task {
  int64_t sequence, head, page, first, end;
};

class Step {
 public:
  Step(int64_t batch, int64_t heads, const Pages& pages, int64_t layer, const int32_t* positions, int64_t window, float scale, float cap)
      : batch_(batch), heads_(heads), pages_(pages), layer_(layer), positions_(positions), window_(window), scale_(scale), cap_(cap) {}

  void write(const float* k, const float* v, const bool* valid) const {
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t h = 0; valid[b] && h < pages_.kv_heads; ++h) {
        int64_t at = pages_.index(layer_, b, h, positions_[b]), from = (b * pages_.kv_heads + h) * pages_.size;
        ALHENA_CHOOSE(write_head)(k + from, pages_.keys, pages_.key_scales, at, pages_.size, pages_.type);
        ALHENA_CHOOSE(write_head)(v + from, pages_.values, pages_.value_scales, at, pages_.size, pages_.type);
      }
  }

  void attend(const float* q, float* out, ffi::ThreadPool pool) const {
    std::vector<Task> tasks;
    std::vector<int64_t> starts;
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t h = 0; h < pages_.kv_heads; ++h) {
        starts.push_back(tasks.size());
        int64_t end = positions_[b] + 1, first = window_ ? std::max<int64_t>(end - window_, 0) : 0;
        for (int64_t p = first / PAGE; p * PAGE < end; ++p)
          tasks.push_back({b, h, p, std::max<int64_t>(first - p * PAGE, 0), std::min<int64_t>(end - p * PAGE, PAGE)});
      }
    starts.push_back(tasks.size());
    int64_t group = this->group(), floats = group * (2 + pages_.size);
    std::vector<float> scratch(tasks.size() * floats);
    std::vector<Partial> parts;
    for (size_t i = 0; i < tasks.size(); ++i) {
      float* p = scratch.data() + i * floats;
      parts.push_back({p, p + group, p + 2 * group});
    }
    // Few pages are divided further, by the queries that are computed together.
    int64_t threads = pool.num_threads(), together = group % TOGETHER == 0 ? TOGETHER : group, count = tasks.size();
    if (count >= 4 * threads) together = group;
    int64_t splits = group / together, work = 0;
    for (const Task& t : tasks) work += (t.end - t.first) * group * pages_.size;
    auto one = [&](int64_t i) { run(tasks[i / splits], q, parts[i / splits], i % splits * together, together); };
    // Less than a thread's start takes.
    if (work < 65536) for (int64_t i = 0; i < count * splits; ++i) one(i);
    else Parallel(pool, count * splits, one);
    for (size_t i = 0; i + 1 < starts.size(); ++i)
      ALHENA_CHOOSE(combine)(parts.data() + starts[i], starts[i + 1] - starts[i], group, pages_.size, out + i * group * pages_.size);
  }

 private:
  int64_t group() const { return heads_ / pages_.kv_heads; }

  // Some queries of a page.
  void run(const Task& t, const float* q, Partial p, int64_t first, int64_t count) const {
    int64_t at = pages_.index(layer_, t.sequence, t.head, t.page * PAGE), from = at * pages_.size;
    Queries a{q + (t.sequence * heads_ + t.head * group() + first) * pages_.size, count, pages_.size, scale_, cap_};
    p = {p.maximum + first, p.total + first, p.out + first * pages_.size};
    if (pages_.type == Type::F32)
      ALHENA_CHOOSE(attend_float)(a, static_cast<float*>(pages_.keys) + from, static_cast<float*>(pages_.values) + from, t.first, t.end, p);
    else if (pages_.type == Type::BF16)
      ALHENA_CHOOSE(attend_bfloat16)(a, static_cast<uint16_t*>(pages_.keys) + from, static_cast<uint16_t*>(pages_.values) + from, t.first, t.end, p);
    else
      ALHENA_CHOOSE(attend_int8)(a, static_cast<int8_t*>(pages_.keys) + from, static_cast<int8_t*>(pages_.values) + from, pages_.key_scales + at,
                  pages_.value_scales + at, t.first, t.end, p);
  }

  int64_t batch_, heads_;
  Pages pages_;
  int64_t layer_;
  const int32_t* positions_;
  int64_t window_;
  float scale_, cap_;
};

ffi::Error error(const char* what) { return ffi::Error(ffi::ErrorCode::kInvalidArgument, what); }

// Arguments: q, k, v (float32, flat heads), scales of their norms (empty: none), RoPE tables of q and of k, positions, valid, index of the
// layer in each entry, then keys, values, [their scales,] table of each entry. Results: heads, then keys, values [and scales] of each entry.
ffi::Error attend_token(
    ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, ffi::Span<const int64_t> windows, int64_t heads,
    bool has_norms, bool value_norm, float scale, float cap) {
  constexpr size_t FIXED = 8;
  if (args.size() <= FIXED) return error("attend_token: arguments are missing");
  auto floats = [&](size_t i) { return args.get<ffi::AnyBuffer>(i)->typed_data<float>(); };
  auto q = *args.get<ffi::AnyBuffer>(0), k = *args.get<ffi::AnyBuffer>(1);
  size_t per_entry = (args.size() - FIXED) / windows.size();
  bool writes = k.element_count() > 0;
  auto* positions = args.get<ffi::AnyBuffer>(5)->typed_data<int32_t>();
  auto* valid = args.get<ffi::AnyBuffer>(6)->typed_data<bool>();
  auto* index = args.get<ffi::AnyBuffer>(7)->typed_data<int32_t>();
  auto q_dims = q.dimensions();
  int64_t batch = q_dims[0], size = q_dims[1] / heads;
  for (size_t e = 0; e < windows.size(); ++e) {
    size_t first = FIXED + e * per_entry;
    Pages pages = pages_of(args, first, per_entry);
    if (index[e] < 0 || index[e] >= pages.layers) continue;
    if (!pages.fits(heads, size)) return error("attend_token: shapes that do not fit");
    std::vector<float> projected(q.typed_data<float>(), q.typed_data<float>() + q.element_count());
    std::vector<float> new_k, new_v;
    const float* rope = floats(4);
    if (writes) {
      new_k.assign(floats(1), floats(1) + k.element_count());
      new_v.assign(floats(2), floats(2) + k.element_count());
    }
    const float* scales = has_norms ? floats(3) : nullptr;
    for (int64_t b = 0; b < batch; ++b) {
      ALHENA_CHOOSE(prepare)(projected.data() + b * heads * size, heads, scales, has_norms, rope + 2 * b * size, size);
      if (!writes) continue;
      ALHENA_CHOOSE(prepare)(new_k.data() + b * pages.kv_heads * size, pages.kv_heads, has_norms ? scales + size : nullptr, has_norms, rope + (2 * b + 1) * size, size);
      if (value_norm) ALHENA_CHOOSE(prepare)(new_v.data() + b * pages.kv_heads * size, pages.kv_heads, nullptr, true, nullptr, size);
    }
    Step step(batch, heads, pages, index[e], positions, windows[e], scale, cap);
    if (writes) step.write(new_k.data(), new_v.data(), valid);
    step.attend(projected.data(), rets.get<ffi::AnyBuffer>(0).value()->typed_data<float>(), pool);
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    AlhenaAttendToken, attend_token,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attr<ffi::Span<const int64_t>>("windows")
        .Attr<int64_t>("heads").Attr<bool>("has_norms").Attr<bool>("value_norm").Attr<float>("scale").Attr<float>("cap"));

}  // namespace alhena
