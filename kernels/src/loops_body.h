// Bodies of the inner loops. Included by one source file for each instruction set, which defines KVANT_ISA (a
// namespace) and, before this, in that namespace: `multiply` and its tile's measures, `table_of_bytes` and
// `has_tables_of_bytes`. Nothing here may call an inline function of a header: the linker could keep the copy of another
// instruction set.
namespace kvant {
namespace KVANT_ISA {
namespace {

// 1.5 * 2^23: adding it rounds a float below 2^22 to an integer, half to even, which is then in the sum's lowest bits.
constexpr float kRounder = 12582912.0f;
constexpr int32_t kRounderBits = 0x4b400000;

struct Bounds {
  float low, high;
  int32_t shift;  // from the bits of a rounded sum to the result
};

Bounds bounds_of(const kvant_target *target) {
  return {static_cast<float>(target->low - target->zero_point), static_cast<float>(target->high - target->zero_point),
          target->zero_point - kRounderBits};
}

// min(max(rne(v) + zero, low), high). Clamping first gives the same, since the bounds are integers, and keeps v small.
inline int32_t settle(float v, const Bounds &bounds) {
  v = v < bounds.low ? bounds.low : v;
  v = v > bounds.high ? bounds.high : v;
  v += kRounder;
  int32_t bits;
  __builtin_memcpy(&bits, &v, sizeof bits);
  return bits + bounds.shift;
}

template <typename Out, typename Value>
void settle_all(int64_t count, const kvant_target *target, Out *y, Value value) {
  const Bounds bounds = bounds_of(target);
  for (int64_t i = 0; i < count; ++i) y[i] = static_cast<Out>(settle(value(i), bounds));
}

template <typename Value>
void settle_as(int64_t count, const kvant_target *target, void *y, Value value) {
  if (target->dtype == KVANT_UINT8) {
    settle_all(count, target, static_cast<uint8_t *>(y), value);
  } else {
    settle_all(count, target, static_cast<int16_t *>(y), value);
  }
}

template <typename Sum>
void settle_row(int64_t count, const Sum *__restrict sums, float multiplier, const kvant_target *target, void *y) {
  settle_as(count, target, y, [=](int64_t i) { return static_cast<float>(sums[i]) * multiplier; });
}

template <typename Sum>
void settle_each(int64_t count, const Sum *__restrict sums, const float *__restrict multipliers,
                 const kvant_target *target, void *y) {
  settle_as(count, target, y, [=](int64_t i) { return static_cast<float>(sums[i]) * multipliers[i]; });
}

void settle_float(int64_t count, const float *__restrict values, const kvant_target *target, void *y) {
  settle_as(count, target, y, [=](int64_t i) { return values[i]; });
}

// Of what is not finite the exponent has all its bits, so that as an integer it is no less than infinity's.
bool all_finite(int64_t count, const float *__restrict x) {
  constexpr int32_t kInfinity = 0x7f800000, kMagnitude = 0x7fffffff;
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    __builtin_memcpy(&bits, x + i, sizeof bits);
    bits &= kMagnitude;
    largest = largest > bits ? largest : bits;
  }
  return largest < kInfinity;
}

bool quantize(int64_t count, const float *__restrict x, float scale, const kvant_target *target, void *y) {
  settle_as(count, target, y, [=](int64_t i) { return x[i] / scale; });
  return all_finite(count, x);
}

void interleave(int64_t count, const int16_t *__restrict first, const int16_t *__restrict second,
                int16_t *__restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    out[2 * i] = first[i];
    out[2 * i + 1] = second[i];
  }
}

// Three rows of bytes, element by element side by side.
void interleave_three(int64_t count, const uint8_t *__restrict a, const uint8_t *__restrict b,
                      const uint8_t *__restrict c, uint8_t *__restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    out[3 * i] = a[i];
    out[3 * i + 1] = b[i];
    out[3 * i + 2] = c[i];
  }
}

template <typename In, typename Out>
void centre_all(int64_t count, const In *__restrict x, int32_t zero_point, Out *__restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Out>(x[i] - zero_point);
}

template <typename Call>
void with_type(int32_t dtype, const void *x, Call call) {
  switch (dtype) {
    case KVANT_UINT8:
      return call(static_cast<const uint8_t *>(x));
    case KVANT_INT8:
      return call(static_cast<const int8_t *>(x));
    default:
      return call(static_cast<const int16_t *>(x));
  }
}

template <typename Out>
void centre(int64_t count, const void *x, int32_t dtype, int64_t stride, int32_t zero_point, Out *__restrict out) {
  with_type(dtype, x, [=](const auto *typed) {
    if (stride == 1) return centre_all(count, typed, zero_point, out);
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Out>(typed[i * stride] - zero_point);
  });
}

void widen_add(int64_t count, const int32_t *__restrict values, int64_t *__restrict sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += values[i];
}

// One plain loop: the compiler takes a loop over the lanes of each vector apart into single elements.
template <typename Sum, typename Out>
void finish_row(int64_t width, const Sum *__restrict sums, float multiplier, const Bounds &bounds,
                Out *__restrict y) {
  for (int64_t i = 0; i < width; ++i) {
    y[i] = static_cast<Out>(settle(static_cast<float>(sums[i]) * multiplier, bounds));
  }
}

template <typename Sum, typename Out>
void finish_tile(const Finish &finish, const Tile &tile, const Sum *sums) {
  const Bounds bounds = bounds_of(&finish.target);
  const bool whole = tile.columns == tile.width;
  for (int64_t r = 0; r < tile.rows; ++r) {
    Out row[kLanes * kVectors];
    Out *out = reinterpret_cast<Out *>(tile.y + r * tile.stride);
    finish_row(tile.width, sums + r * tile.width, finish.multiplier, bounds, whole ? out : row);
    if (!whole) __builtin_memcpy(out, row, static_cast<uint64_t>(tile.columns) * sizeof(Out));
  }
}

template <typename Sum>
void finish(const Finish &finish, const Tile &tile, const Sum *sums) {
  if (finish.target.dtype == KVANT_UINT8) return finish_tile<Sum, uint8_t>(finish, tile, sums);
  finish_tile<Sum, int16_t>(finish, tile, sums);
}

void to_float(int64_t count, const int32_t *__restrict x, float multiplier, float *__restrict y) {
  for (int64_t i = 0; i < count; ++i) y[i] = static_cast<float>(x[i]) * multiplier;
}

// a / b * multiplier; 0 / 0 is 0, and anything else over 0 lies beyond every bound, with its own sign.
inline float quotient(int32_t a, int32_t b, float multiplier) {
  const float beyond = a == 0 ? 0.0f : (a < 0 ? -1e9f : 1e9f);
  return b == 0 ? beyond : static_cast<float>(a) / static_cast<float>(b == 0 ? 1 : b) * multiplier;
}

template <typename Function>
void binary_all(int64_t count, const int32_t *__restrict a, const int32_t *__restrict b, float ma, float mb,
                float *__restrict out, Function function) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = function(static_cast<float>(a[i]) * ma, static_cast<float>(b[i]) * mb);
  }
}

void binary(int32_t function, int64_t count, const int32_t *a, const int32_t *b, float ma, float mb, float *out) {
  switch (function) {
    case KVANT_ADD:
      return binary_all(count, a, b, ma, mb, out, [](float x, float y) { return x + y; });
    case KVANT_SUB:
      return binary_all(count, a, b, ma, mb, out, [](float x, float y) { return x - y; });
    case KVANT_MIN:
      return binary_all(count, a, b, ma, mb, out, [](float x, float y) { return x < y ? x : y; });
    case KVANT_MAX:
      return binary_all(count, a, b, ma, mb, out, [](float x, float y) { return x > y ? x : y; });
    case KVANT_MUL:  // the product of two 16-bit integers fits 32 bits
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(a[i] * b[i]) * ma;
      return;
    default:
      for (int64_t i = 0; i < count; ++i) out[i] = quotient(a[i], b[i], ma);
  }
}

// Both operands and the result of one type. y may be a or b: elements do not depend on each other.
template <typename T, typename Function>
void binary_in_one_pass(int64_t count, const T *a, const T *b, const Operands &o, const kvant_target *target, T *y,
                        Function function) {
  const Bounds bounds = bounds_of(target);
  const int32_t zero_a = o.zero_a, zero_b = o.zero_b;
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#else
#pragma GCC ivdep
#endif
  for (int64_t i = 0; i < count; ++i) y[i] = static_cast<T>(settle(function(a[i] - zero_a, b[i] - zero_b), bounds));
}

template <typename T>
void binary_of(bool product, int64_t count, const void *a, const void *b, const Operands &o,
               const kvant_target *target, void *y) {
  const T *first = static_cast<const T *>(a), *second = static_cast<const T *>(b);
  const float ma = o.multiplier_a, mb = o.multiplier_b;
  if (product) {
    return binary_in_one_pass(count, first, second, o, target, static_cast<T *>(y),
                              [=](int32_t v, int32_t w) { return static_cast<float>(v * w) * ma; });
  }
  binary_in_one_pass(count, first, second, o, target, static_cast<T *>(y), [=](int32_t v, int32_t w) {
    return static_cast<float>(v) * ma + static_cast<float>(w) * mb;
  });
}

void binary_alike(bool product, int64_t count, const void *a, const void *b, const Operands &operands,
                  const kvant_target *target, void *y) {
  const auto function = target->dtype == KVANT_UINT8 ? binary_of<uint8_t> : binary_of<int16_t>;
  function(product, count, a, b, operands, target, y);
}

int32_t lowest_of(int32_t dtype) { return dtype == KVANT_UINT8 ? 0 : dtype == KVANT_INT8 ? -128 : -32768; }

template <typename Entry>
void table_all(int64_t count, const void *x, int32_t dtype, const void *entries, void *y) {
  const Entry *from = static_cast<const Entry *>(entries);
  Entry *to = static_cast<Entry *>(y);
  const int32_t lowest = lowest_of(dtype);
  with_type(dtype, x, [=](const auto *typed) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[typed[i] - lowest];
  });
}

template <typename Entry>
void tables_of(int64_t pixels, int64_t channels, const void *x, int32_t dtype, const void *entries, void *y) {
  const int64_t size = dtype == KVANT_INT16 ? 65536 : 256;
  const Entry *first = static_cast<const Entry *>(entries) - lowest_of(dtype);
  Entry *to = static_cast<Entry *>(y);
  with_type(dtype, x, [=](const auto *typed) {
    for (int64_t i = 0; i < pixels; ++i) {
      const auto *pixel = typed + i * channels;
      for (int64_t c = 0; c < channels; ++c) to[i * channels + c] = first[c * size + pixel[c]];
    }
  });
}

typedef uint8_t Bytes __attribute__((vector_size(kByteTile)));

#if defined(__clang__)
#define KVANT_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define KVANT_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Bytes{__VA_ARGS__})
#endif

// Columns of 16 bytes become rows: pairing up rows 8 apart four times brings each byte to its place.
void transpose_bytes(const uint8_t *x, int64_t stride, uint8_t *y, int64_t width) {
  Bytes a[kByteTile], b[kByteTile];
#pragma GCC unroll 16
  for (int i = 0; i < kByteTile; ++i) __builtin_memcpy(&a[i], x + i * stride, kByteTile);
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = KVANT_SHUFFLE(a[i], a[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      b[2 * i + 1] = KVANT_SHUFFLE(a[i], a[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kByteTile; ++i) a[i] = b[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kByteTile; ++i) __builtin_memcpy(y + i * width, &a[i], kByteTile);
}

constexpr int64_t kTablePixels = 64;

// Of a tile's channels, for as many pixels as make whole vectors: channel by channel.
void tables_of_tile(int64_t channels, const uint8_t *x, uint8_t flip, const uint8_t *entries, uint8_t *y) {
  uint8_t found[kByteTile * kTablePixels];
  for (int64_t i = 0; i < kTablePixels; i += kByteTile) transpose_bytes(x + i * channels, channels, found + i, kTablePixels);
  for (int64_t c = 0; c < kByteTile; ++c) {
    table_of_bytes(kTablePixels, found + c * kTablePixels, flip, entries + c * 256, found + c * kTablePixels);
  }
  for (int64_t i = 0; i < kTablePixels; i += kByteTile) transpose_bytes(found + i, kTablePixels, y + i * channels, channels);
}

// Whole tiles of pixels; the last channels with some of those before.
void tables_to_bytes(int64_t pixels, int64_t channels, const uint8_t *x, int32_t dtype, const uint8_t *entries,
                     uint8_t *y) {
  const uint8_t flip = dtype == KVANT_UINT8 ? 0 : 0x80;
  const int64_t done = channels < kByteTile ? 0 : pixels / kTablePixels * kTablePixels;
  for (int64_t i = 0; i < done; i += kTablePixels) {
    for (int64_t c = 0; c < channels; c += kByteTile) {
      const int64_t first = c + kByteTile <= channels ? c : channels - kByteTile, at = i * channels + first;
      tables_of_tile(channels, x + at, flip, entries + first * 256, y + at);
    }
  }
  tables_of<uint8_t>(pixels - done, channels, x + done * channels, dtype, entries, y + done * channels);
}

void tables(int64_t pixels, int64_t channels, const void *x, int32_t dtype, const void *entries, int64_t element_size,
            void *y) {
  if (element_size == 1 && dtype != KVANT_INT16 && has_tables_of_bytes()) {
    return tables_to_bytes(pixels, channels, static_cast<const uint8_t *>(x), dtype,
                           static_cast<const uint8_t *>(entries), static_cast<uint8_t *>(y));
  }
  if (element_size == 1) return tables_of<uint8_t>(pixels, channels, x, dtype, entries, y);
  if (element_size == 2) return tables_of<uint16_t>(pixels, channels, x, dtype, entries, y);
  if (element_size == 4) return tables_of<uint32_t>(pixels, channels, x, dtype, entries, y);
  tables_of<uint64_t>(pixels, channels, x, dtype, entries, y);
}

void table_to_bytes(int64_t count, const void *x, int32_t dtype, const void *entries, void *y) {
  const uint8_t *from = static_cast<const uint8_t *>(x), *bytes = static_cast<const uint8_t *>(entries);
  uint8_t *to = static_cast<uint8_t *>(y);
  const uint8_t flip = dtype == KVANT_UINT8 ? 0 : 0x80;
  const int64_t done = dtype == KVANT_INT16 ? 0 : table_of_bytes(count, from, flip, bytes, to);
  table_all<uint8_t>(count - done, from + done, dtype, bytes, to + done);
}

void table(int64_t count, const void *x, int32_t dtype, const void *entries, int64_t element_size, void *y) {
  if (element_size == 1) return table_to_bytes(count, x, dtype, entries, y);
  if (element_size == 2) return table_all<uint16_t>(count, x, dtype, entries, y);
  if (element_size == 4) return table_all<uint32_t>(count, x, dtype, entries, y);
  table_all<uint64_t>(count, x, dtype, entries, y);
}

template <typename T>
void extreme_all(int64_t count, bool largest, const T *__restrict x, T *__restrict best) {
  if (largest) {
    for (int64_t i = 0; i < count; ++i) best[i] = best[i] > x[i] ? best[i] : x[i];
  } else {
    for (int64_t i = 0; i < count; ++i) best[i] = best[i] < x[i] ? best[i] : x[i];
  }
}

void extreme(int64_t count, bool largest, int32_t dtype, const void *x, void *best) {
  if (dtype == KVANT_UINT8) {
    return extreme_all(count, largest, static_cast<const uint8_t *>(x), static_cast<uint8_t *>(best));
  }
  if (dtype == KVANT_INT8) {
    return extreme_all(count, largest, static_cast<const int8_t *>(x), static_cast<int8_t *>(best));
  }
  extreme_all(count, largest, static_cast<const int16_t *>(x), static_cast<int16_t *>(best));
}

// The largest of a window's pixels, a block of elements of them at a time; the last block may overlap the one before.
template <typename Block, typename T>
void max_blocks(const WindowRow &windows, const T *x, T *y) {
  constexpr int64_t kBlock = sizeof(Block) / sizeof(T);
  const int64_t inner = windows.inner, step = windows.columns->step * inner;
  for (int64_t i = 0; i < windows.columns->count; ++i, y += inner) {
    const int64_t start = windows.columns->start[i] * inner, stop = windows.columns->stop[i] * inner;
    for (int64_t next = 0; next < inner; next += kBlock) {
      const int64_t c = next + kBlock <= inner ? next : inner - kBlock;
      Block best;
      __builtin_memcpy(&best, x + start + c, sizeof best);
      for (int64_t r = 0; r < windows.rows; ++r) {
        for (int64_t j = start; j < stop; j += step) {
          Block value;
          __builtin_memcpy(&value, x + r * windows.row + j + c, sizeof value);
          best = best > value ? best : value;
        }
      }
      __builtin_memcpy(y + c, &best, sizeof best);
    }
  }
}

void softmax(int64_t size, int32_t *__restrict q, const int32_t *exponentials, float inverse_scale,
             float *__restrict shares) {
  int32_t largest = q[0];
  for (int64_t i = 1; i < size; ++i) largest = largest > q[i] ? largest : q[i];
  int64_t total = 0;
  for (int64_t i = 0; i < size; ++i) {
    q[i] = exponentials[largest - q[i]];
    total += q[i];
  }
  const float sum = static_cast<float>(total);
  for (int64_t i = 0; i < size; ++i) shares[i] = static_cast<float>(q[i]) / sum * inverse_scale;
}

template <typename Sum>
void add_moments_of(int64_t count, const int32_t *q, Moments *moments) {
  Sum sum = 0, squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += q[i];
    squares += static_cast<Sum>(q[i]) * q[i];
  }
  moments->sum += sum;
  moments->squares += squares;
}

void add_moments(int64_t count, const int32_t *q, bool bytes, Moments *moments) {
  const auto function = bytes ? add_moments_of<int32_t> : add_moments_of<int64_t>;
  function(count, q, moments);
}

template <typename Sum>
void normalize_of(const Line &line, const int32_t *__restrict q, const float *gamma, const float *beta,
                  float *__restrict values) {
  const Sum size = static_cast<Sum>(line.size), sum = static_cast<Sum>(line.sum);
  if (line.inner == 1) {
    for (int64_t i = 0; i < line.size; ++i) {
      values[i] = (static_cast<float>(size * q[i] - sum) * line.factor * gamma[i] + beta[i]) / line.output_scale;
    }
    return;
  }
  for (int64_t first = 0; first < line.size; first += line.inner, ++gamma, ++beta) {
    for (int64_t i = first; i < first + line.inner; ++i) {
      values[i] = (static_cast<float>(size * q[i] - sum) * line.factor * *gamma + *beta) / line.output_scale;
    }
  }
}

void normalize(const Line &line, const int32_t *q, const float *gamma, const float *beta, float *values) {
  const auto function = line.narrow ? normalize_of<int32_t> : normalize_of<int64_t>;
  function(line, q, gamma, beta, values);
}

template <typename T>
void max_row_of(const WindowRow &windows, const T *x, T *y) {
  constexpr int64_t kVectorBytes = kLanes * 4, kSmallBytes = 16;
  typedef T Large __attribute__((vector_size(kVectorBytes)));
  typedef T Small __attribute__((vector_size(kSmallBytes)));
  const int64_t bytes = windows.inner * static_cast<int64_t>(sizeof(T));
  if (bytes >= kVectorBytes) return max_blocks<Large>(windows, x, y);
  if (bytes >= kSmallBytes) return max_blocks<Small>(windows, x, y);
  max_blocks<T>(windows, x, y);
}

void max_row(const WindowRow &windows, int32_t dtype, const void *x, void *y) {
  if (dtype == KVANT_UINT8) return max_row_of(windows, static_cast<const uint8_t *>(x), static_cast<uint8_t *>(y));
  if (dtype == KVANT_INT8) return max_row_of(windows, static_cast<const int8_t *>(x), static_cast<int8_t *>(y));
  max_row_of(windows, static_cast<const int16_t *>(x), static_cast<int16_t *>(y));
}

void accumulate32(int64_t count, const void *x, int32_t dtype, int32_t zero_point, int32_t *__restrict sums) {
  with_type(dtype, x, [=](const auto *typed) {
    for (int64_t i = 0; i < count; ++i) sums[i] += typed[i] - zero_point;
  });
}

template <typename Sum>
void blend(int64_t count, const Sum *__restrict lower, const Sum *__restrict upper, int64_t weight, int64_t one,
           Sum *__restrict out) {
  const Sum share = static_cast<Sum>(weight), rest = static_cast<Sum>(one - weight);
  for (int64_t i = 0; i < count; ++i) out[i] = lower[i] * rest + upper[i] * share;
}

}  // namespace

extern const Loops kLoops;
const Loops kLoops = {
    kRows,
    kLanes,
    kVectors,
    multiply,
    finish<int32_t>,
    finish<int64_t>,
    interleave,
    interleave_three,
    centre<int16_t>,
    centre<int32_t>,
    settle_row<int32_t>,
    settle_row<int64_t>,
    settle_each<int32_t>,
    settle_each<int64_t>,
    settle_float,
    widen_add,
    quantize,
    to_float,
    binary,
    binary_alike,
    table,
    tables,
    softmax,
    add_moments,
    normalize,
    transpose_bytes,
    extreme,
    max_row,
    accumulate32,
    blend<int32_t>,
    blend<int64_t>,
};

}  // namespace KVANT_ISA
}  // namespace kvant
