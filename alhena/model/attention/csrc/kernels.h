// The inner loops, included once for each instruction set (targets.h): no guard, and nothing but functions and vector types.

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

// Rotates the two halves of a head; the table has cosines, then sines.
INLINE void rotate(float* x, const float* table, int64_t size) {
  int64_t half = size / 2;
  for (int64_t i = 0; i < half; ++i) {
    float a = x[i], b = x[half + i], c = table[i], s = table[half + i];
    x[i] = a * c - b * s;
    x[half + i] = b * c + a * s;
  }
}

void prepare(float* x, int64_t count, const float* scale, bool has_norm, const float* table, int64_t size) {
  for (int64_t i = 0; i < count; ++i, x += size) {
    if (has_norm) norm(x, scale, size);
    if (table) rotate(x, table, size);
  }
}

void write_head(const float* x, void* stored, float* scales, int64_t at, int64_t size, Type type) {
  if (type == Type::F32) {
    std::memcpy(static_cast<float*>(stored) + at * size, x, size * sizeof(float));
  } else if (type == Type::BF16) {
    uint16_t* out = static_cast<uint16_t*>(stored) + at * size;
    for (int64_t i = 0; i < size; ++i) out[i] = to_bfloat16(x[i]);
  } else {
    int8_t* out = static_cast<int8_t*>(stored) + at * size;
    float largest = 0;
    for (int64_t i = 0; i < size; ++i) largest = std::max(largest, std::fabs(x[i]));
    float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    scales[at] = largest / 127.0f;
    for (int64_t i = 0; i < size; ++i) out[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
  }
}


template <class T, int Q>
INLINE void page_scores(const Queries& a, const T* keys, const float* scales, int64_t first, int64_t end, float* scores) {
  for (int64_t s = first; s < end; ++s) {
    F16 sums[Q] = {};
    for (int64_t i = 0; i < a.size; i += 16) {
      F16 k = load(keys + s * a.size + i);
      for (int g = 0; g < Q; ++g) sums[g] += k * load(a.q + g * a.size + i);
    }
    for (int g = 0; g < Q; ++g) {
      float score = sum(sums[g]) * a.scale * (scales ? scales[s] : 1.0f);
      scores[g * PAGE + s] = a.cap > 0 ? a.cap * std::tanh(score / a.cap) : score;
    }
  }
}

template <class T, int Q>
INLINE void page_values(const Queries& a, const T* values, int64_t first, int64_t end, const float* weights, float* out) {
  for (int64_t i = 0; i < a.size; i += 16) {
    F16 sums[Q] = {};
    for (int64_t s = first; s < end; ++s) {
      F16 v = load(values + s * a.size + i);
      for (int g = 0; g < Q; ++g) sums[g] += v * weights[g * PAGE + s];
    }
    for (int g = 0; g < Q; ++g) store(out + g * a.size + i, sums[g]);
  }
}

// Up to Q queries at a time.
template <class T, int Q>
INLINE void attend_some(
    const Queries& a, const T* keys, const T* values, const float* key_scales, const float* value_scales, int64_t first,
    int64_t end, Partial p) {
  alignas(64) float scores[Q * PAGE];
  for (float& x : scores) x = -std::numeric_limits<float>::infinity();
  page_scores<T, Q>(a, keys, key_scales, first, end, scores);
  for (int g = 0; g < Q; ++g) {
    float* row = scores + g * PAGE;
    float maximum = *std::max_element(row + first, row + end);
    F16 total{};
    for (int64_t s = 0; s < PAGE; s += 16) {
      F16 e = exponential(load(row + s) - maximum);
      // exponential has no zeros.
      for (int i = 0; i < 16; ++i) e[i] = s + i >= first && s + i < end ? e[i] : 0.0f;
      total += e;
      store(row + s, e);
    }
    p.maximum[g] = maximum;
    p.total[g] = sum(total);
    if (value_scales)
      for (int64_t s = first; s < end; ++s) row[s] *= value_scales[s];
  }
  page_values<T, Q>(a, values, first, end, scores, p.out);
}

template <class T>
INLINE void attend_page(
    Queries a, const T* keys, const T* values, const float* key_scales, const float* value_scales, int64_t first, int64_t end,
    Partial p) {
  while (a.group) {
    int64_t count = a.group >= 4 ? 4 : 1;
    if (count == 4) attend_some<T, 4>(a, keys, values, key_scales, value_scales, first, end, p);
    else attend_some<T, 1>(a, keys, values, key_scales, value_scales, first, end, p);
    a.q += count * a.size, a.group -= count;
    p = {p.maximum + count, p.total + count, p.out + count * a.size};
  }
}

void attend_float(Queries a, const float* k, const float* v, int64_t first, int64_t end, Partial p) {
  attend_page<float>(a, k, v, nullptr, nullptr, first, end, p);
}
void attend_bfloat16(Queries a, const uint16_t* k, const uint16_t* v, int64_t first, int64_t end, Partial p) {
  attend_page<uint16_t>(a, k, v, nullptr, nullptr, first, end, p);
}
void attend_int8(
    Queries a, const int8_t* k, const int8_t* v, const float* key_scales, const float* value_scales, int64_t first,
    int64_t end, Partial p) {
  attend_page<int8_t>(a, k, v, key_scales, value_scales, first, end, p);
}

// Combines what the pages gave, in order.
void combine(const Partial* parts, int64_t count, int64_t group, int64_t size, float* out) {
  for (int64_t g = 0; g < group; ++g) {
    float maximum = parts[0].maximum[g], total = 0;
    for (int64_t p = 1; p < count; ++p) maximum = std::max(maximum, parts[p].maximum[g]);
    float* o = out + g * size;
    std::fill(o, o + size, 0.0f);
    for (int64_t p = 0; p < count; ++p) {
      float factor = std::exp(parts[p].maximum[g] - maximum);
      total += factor * parts[p].total[g];
      for (int64_t i = 0; i < size; ++i) o[i] += factor * parts[p].out[g * size + i];
    }
    for (int64_t i = 0; i < size; ++i) o[i] /= total;
  }
}

// R rows times V·16 outputs of an [in, out] weight.
template <class T, int R, int V>
INLINE void columns(const float* x, const T* w, float* y, int64_t inputs, int64_t outputs) {
  F16 sums[R][V] = {};
  for (int64_t i = 0; i < inputs; ++i) {
    const T* row = w + i * outputs;
    __builtin_prefetch(row + 8 * outputs);
    for (int v = 0; v < V; ++v) {
      F16 values = load(row + 16 * v);
      for (int r = 0; r < R; ++r) sums[r][v] += values * x[r * inputs + i];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(y + r * outputs + 16 * v, sums[r][v]);
}

template <class T>
INLINE void column_block(const float* x, const T* w, float* y, int64_t rows, int64_t width, int64_t inputs, int64_t outputs) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t o = 0;
    for (; o + 64 <= width; o += 64) columns<T, 4, 4>(x + r * inputs, w + o, y + r * outputs + o, inputs, outputs);
    for (; o < width; o += 16) columns<T, 4, 1>(x + r * inputs, w + o, y + r * outputs + o, inputs, outputs);
  }
  for (; r < rows; ++r) {
    int64_t o = 0;
    for (; o + 256 <= width; o += 256) columns<T, 1, 16>(x + r * inputs, w + o, y + r * outputs + o, inputs, outputs);
    for (; o < width; o += 16) columns<T, 1, 1>(x + r * inputs, w + o, y + r * outputs + o, inputs, outputs);
  }
}

// R rows times O outputs of an [out, in] weight.
template <class T, int R, int O>
INLINE void dots(const float* x, const T* w, float* y, int64_t inputs, int64_t outputs) {
  F16 sums[R][O] = {};
  for (int64_t i = 0; i < inputs; i += 16) {
    F16 values[O];
    for (int o = 0; o < O; ++o) values[o] = load(w + o * inputs + i);
    for (int r = 0; r < R; ++r) {
      F16 v = load(x + r * inputs + i);
      for (int o = 0; o < O; ++o) sums[r][o] += v * values[o];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int o = 0; o < O; ++o) y[r * outputs + o] = sum(sums[r][o]);
}

template <class T>
INLINE void row_block(const float* x, const T* w, float* y, int64_t rows, int64_t width, int64_t inputs, int64_t outputs) {
  for (int64_t o = 0; o < width;) {
    int64_t step = o + 4 <= width ? 4 : 1, r = 0;
    for (; r + 4 <= rows; r += 4) {
      if (step == 4) dots<T, 4, 4>(x + r * inputs, w + o * inputs, y + r * outputs + o, inputs, outputs);
      else dots<T, 4, 1>(x + r * inputs, w + o * inputs, y + r * outputs + o, inputs, outputs);
    }
    for (; r < rows; ++r) {
      if (step == 4) dots<T, 1, 4>(x + r * inputs, w + o * inputs, y + r * outputs + o, inputs, outputs);
      else dots<T, 1, 1>(x + r * inputs, w + o * inputs, y + r * outputs + o, inputs, outputs);
    }
    o += step;
  }
}

void float_block(const Block& b) {
  auto* w = static_cast<const float*>(b.w);
  if (b.transposed) row_block(b.x, w, b.y, b.rows, b.width, b.inputs, b.outputs);
  else column_block(b.x, w, b.y, b.rows, b.width, b.inputs, b.outputs);
}

#if ALHENA_AVX512 == 2

INLINE __m512bh pairs(const uint16_t* p) { return (__m512bh)_mm512_loadu_si512(p); }

// The same two values of a row of x for every output.
INLINE __m512bh pair(const uint16_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  return (__m512bh)_mm512_set1_epi32(bits);
}

// R rows times C·32 outputs of an [in, out] weight, two inputs at a time.
template <int R, int C>
INLINE void pair_columns(const uint16_t* x, const uint16_t* w, float* y, int64_t inputs, int64_t outputs) {
  __m512 low[R][C], high[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) low[r][c] = high[r][c] = _mm512_setzero_ps();
  for (int64_t i = 0; i < inputs; i += 2) {
    const uint16_t* row = w + i * outputs;
    for (int c = 0; c < C; ++c) {
      __builtin_prefetch(row + 16 * outputs + 32 * c);
      __builtin_prefetch(row + 17 * outputs + 32 * c);
      __m512i even = _mm512_loadu_si512(row + 32 * c), odd = _mm512_loadu_si512(row + outputs + 32 * c);
      auto first = (__m512bh)_mm512_unpacklo_epi16(even, odd), second = (__m512bh)_mm512_unpackhi_epi16(even, odd);
      for (int r = 0; r < R; ++r) {
        __m512bh values = pair(x + r * inputs + i);
        low[r][c] = _mm512_dpbf16_ps(low[r][c], first, values);
        high[r][c] = _mm512_dpbf16_ps(high[r][c], second, values);
      }
    }
  }
  // Four outputs of the first sums, then four of the second ones.
  const __m512i left = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i right = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) {
      _mm512_storeu_ps(y + r * outputs + 32 * c, _mm512_permutex2var_ps(low[r][c], left, high[r][c]));
      _mm512_storeu_ps(y + r * outputs + 32 * c + 16, _mm512_permutex2var_ps(low[r][c], right, high[r][c]));
    }
}

// R rows times O outputs of an [out, in] weight.
template <int R, int O>
INLINE void pair_dots(const uint16_t* x, const uint16_t* w, float* y, int64_t inputs, int64_t outputs) {
  __m512 sums[R][O];
  for (int r = 0; r < R; ++r)
    for (int o = 0; o < O; ++o) sums[r][o] = _mm512_setzero_ps();
  for (int64_t i = 0; i < inputs; i += 32) {
    __m512bh values[O];
    for (int o = 0; o < O; ++o) values[o] = pairs(w + o * inputs + i);
    for (int r = 0; r < R; ++r) {
      __m512bh v = pairs(x + r * inputs + i);
      for (int o = 0; o < O; ++o) sums[r][o] = _mm512_dpbf16_ps(sums[r][o], v, values[o]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int o = 0; o < O; ++o) y[r * outputs + o] = _mm512_reduce_add_ps(sums[r][o]);
}

template <int R>
INLINE void pair_rows(const Block& b, int64_t r) {
  auto* x = b.x16 + r * b.inputs;
  auto* w = static_cast<const uint16_t*>(b.w);
  float* y = b.y + r * b.outputs;
  int64_t o = 0;
  if (b.transposed) {
    for (; o + 4 <= b.width; o += 4) pair_dots<R, 4>(x, w + o * b.inputs, y + o, b.inputs, b.outputs);
    for (; o < b.width; ++o) pair_dots<R, 1>(x, w + o * b.inputs, y + o, b.inputs, b.outputs);
  } else {
    if (R == 1) for (; o + 256 <= b.width; o += 256) pair_columns<R, R == 1 ? 8 : 1>(x, w + o, y + o, b.inputs, b.outputs);
    for (; o + 64 <= b.width; o += 64) pair_columns<R, 2>(x, w + o, y + o, b.inputs, b.outputs);
    for (; o < b.width; o += 32) pair_columns<R, 1>(x, w + o, y + o, b.inputs, b.outputs);
  }
}

void bfloat16_block(const Block& b) {
  // Dimensions are multiples of 32.
  int64_t r = 0;
  for (; r + 4 <= b.rows; r += 4) pair_rows<4>(b, r);
  for (; r < b.rows; ++r) pair_rows<1>(b, r);
}

#else

void bfloat16_block(const Block& b) {
  auto* w = static_cast<const uint16_t*>(b.w);
  if (b.transposed) row_block(b.x, w, b.y, b.rows, b.width, b.inputs, b.outputs);
  else column_block(b.x, w, b.y, b.rows, b.width, b.inputs, b.outputs);
}

#endif
