// Vectors of sixteen numbers, included once for each instruction set (targets.h): no guard, and nothing but functions and vector types.

typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef uint16_t H16 __attribute__((vector_size(32)));
typedef int8_t B16 __attribute__((vector_size(16)));

template <class V, class T>
INLINE void load_to(V& v, const T* p) { std::memcpy(&v, p, sizeof(V)); }

INLINE F16 as_float(U16 v) { F16 f; std::memcpy(&f, &v, sizeof f); return f; }

INLINE F16 load(const float* p) { F16 v; load_to(v, p); return v; }

// bfloat16 as the upper halves of floats.
INLINE F16 load(const uint16_t* p) {
#if ALHENA_AVX512
  __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return as_float(reinterpret_cast<U16>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)));
#else
  H16 v;
  load_to(v, p);
  return as_float(__builtin_convertvector(v, U16) << 16);
#endif
}

INLINE F16 load(const int8_t* p) {
#if ALHENA_AVX512
  __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return reinterpret_cast<F16>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
#endif
  B16 v;
  load_to(v, p);
  return __builtin_convertvector(__builtin_convertvector(v, I16), F16);
}

INLINE void store(float* p, F16 v) { std::memcpy(p, &v, sizeof v); }

INLINE F16 splat(float x) { return F16{} + x; }

// Always in the same order.
INLINE float sum(F16 v) {
#if ALHENA_AVX512
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#else
  float a[16];
  store(a, v);
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; ++i) a[i] += a[i + step];
  return a[0];
#endif
}

INLINE uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >> 16) | 0x40;
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

INLINE float from_bfloat16(uint16_t x) {
  uint32_t bits = uint32_t(x) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// e^x of x <= 0, with an error of a few units in the last place; 0 below -87.
INLINE F16 exponential(F16 x) {
  F16 low = splat(-87.0f);
  x = x < low ? low : x;
  // Rounds to the nearest integer.
  F16 magic = splat(12582912.0f), n = x * 1.44269504f + magic - magic;
  F16 r = x - n * 0.693359375f + n * 2.12194440e-4f;
  F16 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  F16 e = p * r * r + r + 1.0f;
  I16 bits = (__builtin_convertvector(n, I16) + 127) << 23;
  F16 scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return e * scale;
}

// The root-mean-square norm; the stored scale is an offset from one, none: no scale.
INLINE void norm(float* x, const float* scale, int64_t size) {
  F16 squares{};
  for (int64_t i = 0; i < size; i += 16) squares += load(x + i) * load(x + i);
  float factor = 1.0f / std::sqrt(sum(squares) / size + EPSILON);
  for (int64_t i = 0; i < size; i += 16) {
    F16 v = load(x + i) * factor;
    store(x + i, scale ? v * (load(scale + i) + 1.0f) : v);
  }
}
