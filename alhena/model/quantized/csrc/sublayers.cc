// The XLA custom call of what follows attention in a layer, each of the three matmuls with its norm, activation and residual connection:
//
//     x ── + norm(output(heads)) ─┬─ norm ─ gelu(gate) · up ─ down ─ norm ─ + ──►
//                                 └─────────────────────────────────────────┘
//
// The reference is _attention_out and _mlp of alhena/model/transformer/decoder.py.

#include <cstring>
#include <string>
#include <vector>

#include "activations.h"
#include "arguments.h"
#define ALHENA_LOOPS "row_loops.h"
#include "targets.h"

namespace ffi = xla::ffi;

namespace alhena {
namespace {

// Scales of the norms; a null pointer: none.
struct Norms {
  const float *attention_post, *mlp, *mlp_post;
};

struct Weights {
  Weight output, gate, up, down;
};

// What the threads of one call share, kept for the next one.
struct Buffers {
  Activations activations, hidden;
  // [rows, width], [rows, hidden], [rows, hidden]
  std::vector<float> sums, gate, up;
};

class Sublayers {
 public:
  Sublayers(ffi::ThreadPool& pool, const Kernels& kernels, Buffers& buffers, const Norms& norms, const Weights& weights,
            float* x, int64_t rows)
      : pool_(pool), kernels_(kernels), b_(buffers), norms_(norms), w_(weights), x_(x), rows_(rows) {
    const int64_t width = w_.output.outputs, size = w_.gate.outputs;
    b_.sums.resize(rows * width);
    b_.gate.resize(rows * size);
    b_.up.resize(rows * size);
    w_.output.out = w_.down.out = b_.sums.data();
    w_.gate.out = b_.gate.data();
    w_.up.out = b_.up.data();
    b_.hidden.Resize(rows, size / kGroup);
    alone_ = rows * width * size < kSmall;
  }

  void Run(const float* heads) {
    b_.activations.Resize(rows_, w_.output.groups);
    RoundRows(pool_, alone_, kernels_, heads, b_.activations);
    MultiplyRounded(pool_, alone_, kernels_, b_.activations, {w_.output});
    b_.activations.Resize(rows_, w_.gate.groups);
    EachRow([&](int64_t r, float* x, float* sums, int64_t width) {
      ALHENA_CHOOSE(add_row)(x, sums, norms_.attention_post, width);
      ALHENA_CHOOSE(norm_row)(x, sums, norms_.mlp, width);
      b_.activations.RoundRow(kernels_, sums, r);
    });
    // Two tiles are a group of the inputs of the next weight.
    const int64_t pairs = w_.gate.tiles / 2, step = std::max<int64_t>(pairs / (pool_.num_threads() * 4), 1);
    Each(pool_, alone_, (pairs + step - 1) / step, [&](int64_t i) {
      MultiplyGated(i * step, std::min(pairs, (i + 1) * step));
    });
    MultiplyRounded(pool_, alone_, kernels_, b_.hidden, {w_.down});
    EachRow([&](int64_t r, float* x, float* sums, int64_t width) {
      ALHENA_CHOOSE(add_row)(x, sums, norms_.mlp_post, width);
    });
  }

 private:
  template <typename F>
  void EachRow(const F& function) {
    const int64_t step = 4, width = w_.output.outputs;
    Each(pool_, alone_ || rows_ <= step, (rows_ + step - 1) / step, [&](int64_t i) {
      for (int64_t r = i * step; r < std::min(rows_, (i + 1) * step); ++r) {
        function(r, x_ + r * width, b_.sums.data() + r * width, width);
      }
    });
  }

  // Some groups of the inputs of ``down``, of all rows.
  void MultiplyGated(int64_t first, int64_t last) {
    const Activations& a = b_.activations;
    const int64_t size = w_.gate.outputs, step = a.blocks() == 1 ? last - first : 1;
    for (int64_t g = first; g < last; g += step) {
      for (int64_t i = 0; i < a.blocks(); ++i) {
        const Block block = a.block(i);
        kernels_.multiply(w_.gate, block, 2 * g, 2 * (g + step));
        kernels_.multiply(w_.up, block, 2 * g, 2 * (g + step));
        for (int64_t r = block.first; r < block.first + block.rows; ++r) {
          float *gate = b_.gate.data() + r * size, *up = b_.up.data() + r * size;
          ALHENA_CHOOSE(gate_row)(gate + g * kGroup, up + g * kGroup, step * kGroup);
          for (int64_t j = g; j < g + step; ++j) b_.hidden.Round(kernels_, gate + j * kGroup, r, j);
        }
      }
    }
  }

  ffi::ThreadPool& pool_;
  const Kernels& kernels_;
  Buffers& b_;
  Norms norms_;
  Weights w_;
  float* x_;
  int64_t rows_;
  bool alone_;
};

bool IsMatrix(const ffi::AnyBuffer& a) {
  return a.element_type() == ffi::F32 && a.dimensions().size() == 2 && a.dimensions()[1] >= kGroup && a.dimensions()[1] % kGroup == 0;
}

// Arguments: x [rows, width], heads [rows, inputs], scales of the three norms (empty: none), then packed values, scales and the index of
// the layer of output, gate, up and down. Result: the next x.
ffi::Error RunSublayers(ffi::ThreadPool pool, std::string_view instructions, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  if (rets.size() != 1 || args.size() != 17) return Invalid("the number of arguments");
  auto x = *args.get<ffi::AnyBuffer>(0), heads = *args.get<ffi::AnyBuffer>(1), down = *args.get<ffi::AnyBuffer>(14);
  auto out = **rets.get<ffi::AnyBuffer>(0);
  const size_t dimensions = down.dimensions().size();
  if (!IsMatrix(x) || !IsMatrix(heads) || !IsMatrix(out) || dimensions < 5) return Invalid("activations must be float32 [rows, width]");
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1], hidden = down.dimensions()[dimensions - 4] * kGroup;
  if (heads.dimensions()[0] != rows || out.element_count() != x.element_count()) return Invalid("the rows of activations differ");
  const Kernels* kernels = Choose(instructions);
  if (!kernels) return Invalid("this processor has no instructions " + std::string(instructions));
  const float* norms[3];
  for (size_t i = 0; i < 3; ++i) {
    auto scale = *args.get<ffi::AnyBuffer>(2 + i);
    const int64_t size = scale.element_count();
    if (scale.element_type() != ffi::F32 || (size != width && (size || i == 1))) return Invalid("the scale of a norm");
    norms[i] = size ? scale.typed_data<float>() : nullptr;
  }
  Weights w;
  for (auto [weight, first, inputs, outputs] : {std::tuple{&w.output, 5, heads.dimensions()[1], width},
                                                std::tuple{&w.gate, 8, width, hidden},
                                                std::tuple{&w.up, 11, width, hidden},
                                                std::tuple{&w.down, 14, hidden, width}}) {
    if (ffi::Error error = ReadWeight(args, first, inputs, outputs, weight); error.failure()) return error;
  }
  float* next = out.typed_data<float>();
  if (next != x.typed_data<float>()) std::memcpy(next, x.typed_data<float>(), x.size_bytes());
  thread_local Buffers buffers;
  if (rows) Sublayers(pool, *kernels, buffers, {norms[0], norms[1], norms[2]}, w, next, rows).Run(heads.typed_data<float>());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace alhena

XLA_FFI_DEFINE_HANDLER_SYMBOL(alhena_sublayers, alhena::RunSublayers,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<std::string_view>("instructions")
                                  .RemainingArgs()
                                  .RemainingRets());
