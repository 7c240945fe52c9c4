// The XLA custom call: activations times several quantized weights. It checks what it is given, rounds the activations, and divides
// the tiles of all weights among the threads of XLA's pool.

#include <string>
#include <vector>

#include "activations.h"
#include "arguments.h"

namespace ffi = xla::ffi;

namespace alhena {
namespace {

// Arguments: activations float32 [rows, inputs]; of each weight packed values, scales and the index of its layer.
ffi::Error Matmul(ffi::ThreadPool pool, std::string_view instructions, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  if (rets.size() < 1 || args.size() != 1 + 3 * rets.size()) return Invalid("the number of arguments");
  auto x = *args.get<ffi::AnyBuffer>(0);
  const auto shape = x.dimensions();
  if (x.element_type() != ffi::F32 || shape.size() != 2 || shape[1] < kGroup || shape[1] % kGroup) {
    return Invalid("activations must be float32 [rows, inputs] in groups of 32");
  }
  const Kernels* kernels = Choose(instructions);
  if (!kernels) return Invalid("this processor has no instructions " + std::string(instructions));
  std::vector<Weight> weights(rets.size());
  int64_t products = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    ffi::AnyBuffer out = **rets.get<ffi::AnyBuffer>(i);
    const auto result = out.dimensions();
    if (out.element_type() != ffi::F32 || result.size() != 2 || result[1] < 1) {
      return Invalid("the result is not float32 [rows, outputs]");
    }
    if (ffi::Error error = ReadWeight(args, 1 + 3 * i, shape[1], result[1], &weights[i]); error.failure()) return error;
    if (result[0] != shape[0]) return Invalid("the rows of activations and result differ");
    weights[i].out = out.typed_data<float>();
    products += shape[0] * shape[1] * weights[i].tiles * kTile;
  }
  if (!shape[0]) return ffi::Error::Success();
  // Kept for the next call of this thread: allocating it would cost more than a small matmul.
  thread_local Activations activations;
  Activations& a = activations;
  a.Resize(shape[0], shape[1] / kGroup);
  const bool alone = products < kSmall;
  RoundRows(pool, alone, *kernels, x.typed_data<float>(), a);
  MultiplyRounded(pool, alone, *kernels, a, weights);
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
