// The inner loops over rows of activations, included once for each instruction set (targets.h): no guard, and nothing but functions.

// Adds the norm of y to x, or y itself where there is no scale; overwrites y.
void add_row(float* x, float* y, const float* scale, int64_t size) {
  if (scale) norm(y, scale, size);
  for (int64_t i = 0; i < size; i += 16) store(x + i, load(x + i) + load(y + i));
}

void norm_row(const float* x, float* y, const float* scale, int64_t size) {
  std::memcpy(y, x, size * sizeof(float));
  norm(y, scale, size);
}

// GeGLU: gelu(gate) · up in the place of gate, with the approximation  gelu(x) = x / (1 + exp(-2 √(2/π) (x + 0.044715 x³))).
void gate_row(float* gate, const float* up, int64_t size) {
  for (int64_t i = 0; i < size; i += 16) {
    F16 x = load(gate + i), y = x * (x * x * 0.0713548163f + 1.59576912f);
    // The exponential of negative numbers only.
    F16 e = exponential(y < 0.0f ? y : -y), one = splat(1.0f);
    store(gate + i, x * ((y < 0.0f ? e : one) / (e + 1.0f)) * load(up + i));
  }
}
