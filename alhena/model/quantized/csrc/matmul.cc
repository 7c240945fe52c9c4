// The XLA custom call: activations times several quantized weights. It checks what it is given, rounds the activations, and divides
// the tiles of all weights among the threads of XLA's pool.

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace ffi = xla::ffi;

namespace alhena {
namespace {

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

  void RoundBlock(const Kernels& kernels, const float* x, int64_t i) {
    const int64_t first = i * kRows, count = std::min<int64_t>(kRows, rows - first);
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t at = first * groups + g * count + r;
        kernels.round(x + ((first + r) * groups + g) * kGroup,
                      {values.data() + at * kGroup, &scales[at], &offsets4[at], &offsets8[at]});
      }
    }
  }
};

// Some tiles of one weight.
struct Part {
  const Weight* weight;
  int64_t first, last;
};

// Divides the tiles of all weights into parts of about the same work, several for each thread.
std::vector<Part> Divide(const std::vector<Weight>& weights, int64_t threads) {
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

void Multiply(ffi::ThreadPool& pool, const Kernels& kernels, const float* x, int64_t rows, int64_t groups,
              const std::vector<Weight>& weights) {
  // Kept for the next call of this thread: allocating it would cost more than a small matmul.
  thread_local Activations activations;
  Activations& a = activations;
  a.Resize(rows, groups);
  int64_t products = 0;
  for (const Weight& w : weights) products += rows * w.tiles * kTile * w.groups * kGroup;
  const bool alone = products < kSmall;
  if (alone || a.blocks() < 2) {
    for (int64_t i = 0; i < a.blocks(); ++i) a.RoundBlock(kernels, x, i);
  } else {
    Parallel(pool, a.blocks(), [&](int64_t i) { a.RoundBlock(kernels, x, i); });
  }
  const auto run = [&](const Part& part) {
    // A tile stays in the cache for all blocks of rows.
    const int64_t step = a.blocks() == 1 ? part.last - part.first : 1;
    for (int64_t t = part.first; t < part.last; t += step) {
      for (int64_t i = 0; i < a.blocks(); ++i) kernels.multiply(*part.weight, a.block(i), t, t + step);
    }
  };
  if (alone) {
    for (const Weight& w : weights) run({&w, 0, w.tiles});
    return;
  }
  const std::vector<Part> parts = Divide(weights, pool.num_threads());
  Parallel(pool, static_cast<int64_t>(parts.size()), [&](int64_t i) { run(parts[i]); });
}

using Dimensions = ffi::Span<const int64_t>;

// Whether the last dimensions are these.
bool EndsWith(Dimensions dimensions, std::initializer_list<int64_t> expected) {
  if (dimensions.size() < expected.size()) return false;
  return std::equal(expected.begin(), expected.end(), dimensions.end() - expected.size());
}

ffi::Error Invalid(const std::string& message) { return ffi::Error::InvalidArgument("quantized matmul: " + message); }

// Reads the three arguments of a weight, from number ``first``, and its result.
ffi::Error ReadWeight(ffi::RemainingArgs& args, size_t first, ffi::AnyBuffer& out, int64_t inputs, Weight* w) {
  auto packed = *args.get<ffi::AnyBuffer>(first), scales = *args.get<ffi::AnyBuffer>(first + 1);
  auto layer = *args.get<ffi::AnyBuffer>(first + 2);
  const bool four = packed.element_type() == ffi::U8;
  if (!(four || packed.element_type() == ffi::S8) || scales.element_type() != ffi::F16 ||
      layer.element_type() != ffi::S32 || layer.element_count() != 1 || out.element_type() != ffi::F32) {
    return Invalid("dtypes of packed values, scales, layer or result");
  }
  w->bits = four ? 4 : 8;
  w->groups = inputs / kGroup;
  const Dimensions shape = packed.dimensions(), result = out.dimensions();
  if (result.size() != 2 || result[1] < 1) return Invalid("the result is not [rows, outputs]");
  w->outputs = result[1];
  w->tiles = (w->outputs + kTile - 1) / kTile;
  if ((shape.size() != 5 && shape.size() != 6) || !EndsWith(shape, {w->tiles, w->groups, w->bits, kTile, 4}) ||
      scales.dimensions().size() != shape.size() - 2 || !EndsWith(scales.dimensions(), {w->tiles, w->groups, kTile}) ||
      (shape.size() == 6 && scales.dimensions()[0] != shape[0])) {
    return Invalid("shapes of packed values or scales do not fit " + std::to_string(inputs) + " inputs and " +
                   std::to_string(w->outputs) + " outputs");
  }
  const int64_t layers = shape.size() == 6 ? shape[0] : 1, index = *layer.typed_data<int32_t>();
  if (index < 0 || index >= layers) {
    return Invalid("layer " + std::to_string(index) + " of " + std::to_string(layers));
  }
  const int64_t each = w->tiles * w->groups * kTile;
  w->packed = static_cast<const uint8_t*>(packed.untyped_data()) + index * each * 4 * w->bits;
  w->scales = static_cast<const uint16_t*>(scales.untyped_data()) + index * each;
  w->out = out.typed_data<float>();
  return ffi::Error::Success();
}

// The fastest implementation that this processor supports, or the one of that name; a null pointer if there is none.
const Kernels* Choose(std::string_view name) {
  for (const Kernels* const* k = kKernels; *k; ++k) {
    if ((*k)->is_supported() && (name.empty() || name == (*k)->name)) return *k;
  }
  return nullptr;
}

// Arguments: activations float32 [rows, inputs]; of each weight packed values, scales and the index of its layer.
ffi::Error Matmul(ffi::ThreadPool pool, std::string_view instructions, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  if (rets.size() < 1 || args.size() != 1 + 3 * rets.size()) return Invalid("the number of arguments");
  auto x = *args.get<ffi::AnyBuffer>(0);
  const Dimensions shape = x.dimensions();
  if (x.element_type() != ffi::F32 || shape.size() != 2 || shape[1] < kGroup || shape[1] % kGroup) {
    return Invalid("activations must be float32 [rows, inputs] in groups of 32");
  }
  static const Kernels* const fastest = Choose("");
  const Kernels* kernels = instructions.empty() ? fastest : Choose(instructions);
  if (!kernels) return Invalid("this processor has no instructions " + std::string(instructions));
  std::vector<Weight> weights(rets.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    ffi::AnyBuffer out = **rets.get<ffi::AnyBuffer>(i);
    if (ffi::Error error = ReadWeight(args, 1 + 3 * i, out, shape[1], &weights[i]); error.failure()) return error;
    if (out.dimensions()[0] != shape[0]) return Invalid("the rows of activations and result differ");
  }
  if (shape[0]) Multiply(pool, *kernels, x.typed_data<float>(), shape[0], shape[1] / kGroup, weights);
  return ffi::Error::Success();
}

}  // namespace

}  // namespace alhena

XLA_FFI_DEFINE_HANDLER_SYMBOL(alhena_quantized_matmul, alhena::Matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<std::string_view>("instructions")
                                  .RemainingArgs()
                                  .RemainingRets());

// Names of the implementations that this processor supports, fastest first, separated by spaces.
extern "C" __attribute__((visibility("default"))) const char* alhena_instructions() {
  static const std::string names = [] {
    std::string out;
    for (const alhena::Kernels* const* k = alhena::kKernels; *k; ++k) {
      if ((*k)->is_supported()) out += (out.empty() ? "" : " ") + std::string((*k)->name);
    }
    return out;
  }();
  return names.c_str();
}
