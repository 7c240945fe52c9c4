// Reading and checking the arguments of the custom calls.
#pragma once

#include <string>
#include <string_view>

#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace alhena {

xla::ffi::Error Invalid(const std::string& message);

// The fastest implementation that this processor supports, or the one of that name; a null pointer if there is none.
const Kernels* Choose(std::string_view name);

// Reads the three arguments of a weight, from number ``first``: packed values, scales and the index of its layer.
xla::ffi::Error ReadWeight(xla::ffi::RemainingArgs& args, size_t first, int64_t inputs, int64_t outputs, Weight* w);

}  // namespace alhena
