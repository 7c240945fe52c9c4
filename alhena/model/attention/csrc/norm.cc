// The root-mean-square norm of rows. Every row is a sum in one order, whatever the number of rows: XLA's own reduction is divided otherwise
// from some thousand numbers on.

#include "parallel.h"
#define ALHENA_LOOPS "row_loops.h"
#include "targets.h"

namespace ffi = xla::ffi;

namespace alhena {
namespace {

// Rows of x, and the scale of the norm; an empty one: none.
ffi::Error normalize(ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> scale, ffi::ResultBuffer<ffi::F32> y) {
  int64_t size = x.dimensions().back(), scales = scale.element_count();
  if (size % 16 || (scales && scales != size)) return ffi::Error(ffi::ErrorCode::kInvalidArgument, "normalize: sizes that do not fit");
  for (size_t i = 0; i < x.element_count(); i += size)
    ALHENA_CHOOSE(norm_row)(x.typed_data() + i, y->typed_data() + i, scales ? scale.typed_data() : nullptr, size);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    AlhenaNormalize, normalize,
    ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());

}  // namespace alhena
