// Matmul of a few rows by a float32 or bfloat16 weight that is read once, in the layout that it has: [in, out], or [out, in] as the
// tied embedding. A layer of a stack is read where it is. Every result is a sum in one order: rows do not depend on each other.

#include <algorithm>
#include <vector>

#include "loops.h"
#include "parallel.h"

namespace ffi = xla::ffi;

namespace alhena {
namespace {

ffi::Error multiply(
    ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::AnyBuffer w, ffi::Buffer<ffi::S32> layer, bool transposed,
    ffi::ResultBuffer<ffi::F32> y) {
  auto d = w.dimensions();
  int64_t layers = d.size() == 3 ? d[0] : 1, rows = x.dimensions()[0], inputs = x.dimensions()[1], outputs = y->dimensions()[1];
  int64_t index = std::clamp<int64_t>(layer.typed_data()[0], 0, layers - 1);
  if (inputs % 32 || (!transposed && outputs % 32)) return ffi::Error(ffi::ErrorCode::kInvalidArgument, "multiply: sizes that do not fit");
  bool is_float = w.element_type() == ffi::F32;
  int64_t bytes = is_float ? 4 : 2;
  const char* base = static_cast<const char*>(w.untyped_data()) + index * inputs * outputs * bytes;
  std::vector<float> rounded;
  std::vector<uint16_t> bits;
  const float* in = x.typed_data();
  if (!is_float) {
    rounded.resize(rows * inputs);
    bits.resize(rows * inputs);
    for (int64_t i = 0; i < rows * inputs; ++i) rounded[i] = baseline::from_bfloat16(bits[i] = baseline::to_bfloat16(in[i]));
    in = rounded.data();
  }
  int64_t width = transposed ? 64 : rows < 4 && outputs >= 512 ? 256 : 64, blocks = (outputs + width - 1) / width;
  Parallel(pool, blocks, [&](int64_t i) {
    int64_t first = i * width;
    const void* from = base + first * (transposed ? inputs : 1) * bytes;
    Block block{in, bits.data(), from, y->typed_data() + first, rows, std::min(width, outputs - first), inputs, outputs, transposed};
    is_float ? ALHENA_CHOOSE(float_block)(block) : ALHENA_CHOOSE(bfloat16_block)(block);
  });
  return ffi::Error::Success();
}

// Rows of a bfloat16 table, as float32: XLA would convert the complete table first.
ffi::Error take_rows(ffi::Buffer<ffi::BF16> table, ffi::Buffer<ffi::S32> ids, ffi::ResultBuffer<ffi::F32> out) {
  int64_t rows = table.dimensions()[0], size = table.dimensions()[1];
  auto* from = reinterpret_cast<const uint16_t*>(table.untyped_data());
  for (size_t i = 0; i < ids.element_count(); ++i) {
    int64_t row = std::clamp<int64_t>(ids.typed_data()[i], 0, rows - 1);
    for (int64_t j = 0; j < size; ++j) out->typed_data()[i * size + j] = baseline::from_bfloat16(from[row * size + j]);
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    AlhenaTakeRows, take_rows,
    ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::BF16>>().Arg<ffi::Buffer<ffi::S32>>().Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    AlhenaMultiply, multiply,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::Buffer<ffi::F32>>().Arg<ffi::AnyBuffer>().Arg<ffi::Buffer<ffi::S32>>()
        .Attr<bool>("transposed").Ret<ffi::Buffer<ffi::F32>>());

}  // namespace alhena
