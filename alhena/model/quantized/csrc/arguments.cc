#include "arguments.h"

#include <algorithm>
#include <initializer_list>

namespace ffi = xla::ffi;

namespace alhena {
namespace {

using Dimensions = ffi::Span<const int64_t>;

// Whether the last dimensions are these.
bool EndsWith(Dimensions dimensions, std::initializer_list<int64_t> expected) {
  if (dimensions.size() < expected.size()) return false;
  return std::equal(expected.begin(), expected.end(), dimensions.end() - expected.size());
}

}  // namespace

ffi::Error Invalid(const std::string& message) { return ffi::Error::InvalidArgument("quantized matmul: " + message); }

ffi::Error ReadWeight(ffi::RemainingArgs& args, size_t first, int64_t inputs, int64_t outputs, Weight* w) {
  auto packed = *args.get<ffi::AnyBuffer>(first), scales = *args.get<ffi::AnyBuffer>(first + 1);
  auto layer = *args.get<ffi::AnyBuffer>(first + 2);
  const bool four = packed.element_type() == ffi::U8;
  if (!(four || packed.element_type() == ffi::S8) || scales.element_type() != ffi::F16 ||
      layer.element_type() != ffi::S32 || layer.element_count() != 1) {
    return Invalid("dtypes of packed values, scales or layer");
  }
  w->bits = four ? 4 : 8;
  w->groups = inputs / kGroup;
  w->outputs = outputs;
  w->tiles = (outputs + kTile - 1) / kTile;
  const Dimensions shape = packed.dimensions();
  if ((shape.size() != 5 && shape.size() != 6) || !EndsWith(shape, {w->tiles, w->groups, w->bits, kTile, 4}) ||
      scales.dimensions().size() != shape.size() - 2 || !EndsWith(scales.dimensions(), {w->tiles, w->groups, kTile}) ||
      (shape.size() == 6 && scales.dimensions()[0] != shape[0])) {
    return Invalid("shapes of packed values or scales do not fit " + std::to_string(inputs) + " inputs and " +
                   std::to_string(outputs) + " outputs");
  }
  const int64_t layers = shape.size() == 6 ? shape[0] : 1, index = *layer.typed_data<int32_t>();
  if (index < 0 || index >= layers) {
    return Invalid("layer " + std::to_string(index) + " of " + std::to_string(layers));
  }
  const int64_t each = w->tiles * w->groups * kTile;
  w->packed = static_cast<const uint8_t*>(packed.untyped_data()) + index * each * 4 * w->bits;
  w->scales = static_cast<const uint16_t*>(scales.untyped_data()) + index * each;
  return ffi::Error::Success();
}

const Kernels* Choose(std::string_view name) {
  static const Kernels* const fastest = [] {
    const Kernels* const* k = kKernels;
    while (!(*k)->is_supported()) ++k;
    return *k;
  }();
  if (name.empty()) return fastest;
  for (const Kernels* const* k = kKernels; *k; ++k) {
    if ((*k)->is_supported() && name == (*k)->name) return *k;
  }
  return nullptr;
}

}  // namespace alhena
