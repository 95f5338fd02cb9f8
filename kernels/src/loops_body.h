// Bodies of the inner loops. Included by one source file for each instruction set, which defines KVANT_ISA (a
// namespace) and, before this, in that namespace: `multiply` and its tile's measures, `table_of_bytes` and
// `has_tables_of_bytes`. Nothing here may call an inline function of a header: the linker could keep the copy of another
// instruction set.
#include "rows_body.h"
#include "tables_body.h"

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
