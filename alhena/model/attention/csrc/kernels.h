// The inner loops, included once for each instruction set (targets.h): no guard, and nothing but functions.

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
    int64_t count = a.group >= TOGETHER ? TOGETHER : 1;
    if (count == TOGETHER) attend_some<T, TOGETHER>(a, keys, values, key_scales, value_scales, first, end, p);
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

// The index of the first of the largest scores that are allowed, and that score; NaN is never larger.
int64_t largest(const float* scores, const int8_t* allowed, int64_t size, float* score) {
  const F16 lowest = splat(-std::numeric_limits<float>::infinity());
  F16 best = lowest;
  I16 at{};
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) {
    B16 bytes;
    load_to(bytes, allowed + i);
    F16 v = __builtin_convertvector(bytes, I16) != 0 ? load(scores + i) : lowest;
    I16 is_larger = v > best;
    best = is_larger ? v : best;
    at = is_larger ? I16{} + int32_t(i) : at;
  }
  *score = lowest[0];
  int64_t first = 0;
  for (int lane = 0; lane < 16; ++lane)
    if (best[lane] > *score || (best[lane] == *score && at[lane] + lane < first)) *score = best[lane], first = at[lane] + lane;
  for (; i < size; ++i)
    if (allowed[i] && scores[i] > *score) *score = scores[i], first = i;
  return first;
}

// Appends scores that are allowed and above a limit, from index i on, while there is space for sixteen; the next index.
int64_t append_larger(const float* scores, const int8_t* allowed, int64_t i, int64_t size, float limit, std::vector<Ranked>& list, size_t space) {
  for (; i < size && list.size() + 16 <= space; i += 16) {
#if ALHENA_AVX512
    if (i + 16 <= size && !_mm512_cmp_ps_mask(_mm512_loadu_ps(scores + i), _mm512_set1_ps(limit), _CMP_GT_OQ)) continue;
#endif
    for (int64_t j = i; j < std::min(i + 16, size); ++j)
      if (scores[j] > limit && allowed[j]) list.push_back({scores[j], int32_t(j)});
  }
  return i;
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

INLINE F16 hyperbolic_tangent(F16 x) {
  F16 e = exponential((x < 0 ? x : -x) * 2);
  return (x < 0 ? e - 1 : 1 - e) / (1 + e);
}

// The scores of a row, scaled and masked, become weights of the values; the factor of what the row has read before.
INLINE float row_weights(const Rows& a, int64_t r, int64_t position, const float* value_scales, float* scores) {
  int32_t first = std::max<int64_t>(a.first[r] - position, 0), end = std::min<int64_t>(a.end[r] - position, PAGE);
  if (first >= end) {
    std::fill(scores, scores + PAGE, 0.0f);
    return 1;
  }
  const F16 lowest = splat(-std::numeric_limits<float>::infinity());
  const I16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  F16 largest = lowest, total{};
  for (int32_t s = 0; s < PAGE; s += 16) {
    F16 v = load(scores + s) * a.scale;
    if (a.cap > 0) v = a.cap * hyperbolic_tangent(v / a.cap);
    I16 at = lanes + s;
    v = (at >= first) & (at < end) ? v : lowest;
    largest = v > largest ? v : largest;
    store(scores + s, v);
  }
  float maximum = a.maximum[r];
  for (int i = 0; i < 16; ++i) maximum = std::max(maximum, largest[i]);
  float factor = std::exp(a.maximum[r] - maximum);
  for (int32_t s = 0; s < PAGE; s += 16) {
    I16 at = lanes + s;
    // exponential has no zeros.
    F16 e = (at >= first) & (at < end) ? exponential(load(scores + s) - maximum) : F16{};
    total += e;
    store(scores + s, value_scales ? e * load(value_scales + s) : e);
  }
  a.maximum[r] = maximum;
  a.total[r] = a.total[r] * factor + sum(total);
  return factor;
}

// Rows read a page whose first token has a position. ``scratch`` has room for the transposed keys, and for scores, values and a factor of each row.
template <class T>
INLINE void read_page(
    const Rows& a, int64_t position, const T* keys, const T* values, const float* key_scales, const float* value_scales, float* scratch) {
  float *transposed = scratch, *scores = transposed + a.size * PAGE, *read = scores + a.rows * PAGE, *factors = read + a.rows * a.size;
  for (int64_t s = 0; s < PAGE; ++s)
    for (int64_t i = 0; i < a.size; i += 16) {
      F16 k = load(keys + s * a.size + i);
      if (key_scales) k *= key_scales[s];
      for (int j = 0; j < 16; ++j) transposed[(i + j) * PAGE + s] = k[j];
    }
  column_block(a.q, transposed, scores, a.rows, PAGE, a.size, PAGE);
  for (int64_t r = 0; r < a.rows; ++r) factors[r] = row_weights(a, r, position, value_scales, scores + r * PAGE);
  column_block(scores, values, read, a.rows, a.size, PAGE, a.size);
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t i = r * a.size; i < (r + 1) * a.size; i += 16) store(a.out + i, load(a.out + i) * factors[r] + load(read + i));
}

void read_float(const Rows& a, int64_t position, const float* k, const float* v, float* scratch) {
  read_page(a, position, k, v, nullptr, nullptr, scratch);
}
void read_bfloat16(const Rows& a, int64_t position, const uint16_t* k, const uint16_t* v, float* scratch) {
  read_page(a, position, k, v, nullptr, nullptr, scratch);
}
void read_int8(
    const Rows& a, int64_t position, const int8_t* k, const int8_t* v, const float* key_scales, const float* value_scales, float* scratch) {
  read_page(a, position, k, v, key_scales, value_scales, scratch);
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
