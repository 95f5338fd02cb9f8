// Depthwise convolution, a few pixels at a time. Included by one source file for each instruction set, which defines
// KVANT_ISA (a namespace) and, before this, in that namespace: kLanes, Vector, Floats, load_vector, to_float and
// the kinds of operands, each with kTaps, load, interleave, add and a class Finish that writes the results of one pixel.
// Nothing here may call an inline function of a header: the linker could keep the copy of another
// instruction set.
namespace kvant {
namespace KVANT_ISA {
namespace {

template <typename Kind, int64_t P>
__attribute__((always_inline)) inline void depthwise_tile(const DepthwiseWork &work, const typename Kind::Finish &finish,
                                                          const uint8_t *x, uint8_t *y) {
  constexpr int64_t kTaps = Kind::kTaps;
  Vector sums[P][kTaps];
#pragma GCC unroll 4
  for (int64_t v = 0; v < kTaps; ++v) {
    const Vector bias = load_vector(work.bias + v * kLanes);
#pragma GCC unroll 8
    for (int64_t p = 0; p < P; ++p) sums[p][v] = bias;
  }
  const uint8_t *weights = work.weights;
  const int64_t *offsets = work.offsets;
  for (int64_t g = 0; g < work.groups; ++g, offsets += kTaps, weights += kTaps * kLanes * 4) {
    Vector own[kTaps];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kTaps; ++v) own[v] = load_vector(weights + v * kLanes * 4);
#pragma GCC unroll 8
    for (int64_t p = 0; p < P; ++p) {
      Vector taps[kTaps];
#pragma GCC unroll 4
      for (int64_t t = 0; t < kTaps; ++t) taps[t] = Kind::load(x + p * work.column + offsets[t]);
      Kind::interleave(taps);
#pragma GCC unroll 4
      for (int64_t v = 0; v < kTaps; ++v) sums[p][v] = Kind::add(sums[p][v], taps[v], own[v]);
    }
  }
#pragma GCC unroll 8
  for (int64_t p = 0; p < P; ++p) {
    Floats values[kTaps];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kTaps; ++v) values[v] = to_float(sums[p][v]);
    finish.store(values, y + p * work.y_stride);
  }
}

template <typename Kind>
void depthwise(const DepthwiseWork &work) {
  constexpr int64_t kPixels = 4;
  const typename Kind::Finish finish(work);
  const uint8_t *x = work.x;
  uint8_t *y = work.y;
  int64_t left = work.count;
  for (; left >= kPixels; left -= kPixels, x += kPixels * work.column, y += kPixels * work.y_stride) {
    depthwise_tile<Kind, kPixels>(work, finish, x, y);
  }
  for (; left > 0; --left, x += work.column, y += work.y_stride) depthwise_tile<Kind, 1>(work, finish, x, y);
}

// The weights of a kernel 3 columns wide, its rows in groups, and what pixels hold.
template <typename Kind>
struct Columns {
  static constexpr int64_t kTaps = Kind::kTaps;
  static constexpr int64_t kGroups = 4 / kTaps;

  Vector weights[3][kGroups][kTaps], bias[kTaps];
  Vector padding;

  __attribute__((always_inline)) Columns(const DepthwiseWork &work, const DepthwiseRows &rows)
      : padding(Kind::splat(rows.zero_point)) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kTaps; ++v) {
      bias[v] = load_vector(work.bias + v * kLanes);
#pragma GCC unroll 8
      for (int64_t g = 0; g < 3 * kGroups; ++g) {
        weights[g / kGroups][g % kGroups][v] = load_vector(work.weights + (g * kTaps + v) * kLanes * 4);
      }
    }
  }

  // All taps of one column. `kEven`: all rows have the same step.
  template <bool kEven>
  __attribute__((always_inline)) void load(const DepthwiseRows &rows, int64_t column,
                                           Vector (&taps)[kGroups][kTaps]) const {
    const int64_t pixel = column - rows.pad;
    if (static_cast<uint64_t>(pixel) >= static_cast<uint64_t>(rows.pixels)) {
#pragma GCC unroll 4
      for (int64_t t = 0; t < 4; ++t) taps[t / kTaps][t % kTaps] = padding;
      return;
    }
    const int64_t at = pixel * rows.step;
#pragma GCC unroll 4
    for (int64_t t = 0; t < 3; ++t) {
      taps[t / kTaps][t % kTaps] = Kind::load(rows.x[t] + (kEven ? at : pixel * rows.steps[t]));
    }
    taps[3 / kTaps][3 % kTaps] = taps[2 / kTaps][2 % kTaps];
    if (kEven) __builtin_prefetch(rows.x[2] + at + rows.ahead);
#pragma GCC unroll 2
    for (int64_t g = 0; g < kGroups; ++g) Kind::interleave(taps[g]);
  }

  __attribute__((always_inline)) Vector add(Vector sum, const Vector (&taps)[kGroups][kTaps], int64_t column,
                                            int64_t v) const {
#pragma GCC unroll 2
    for (int64_t g = 0; g < kGroups; ++g) sum = Kind::add(sum, taps[g][v], weights[column][g][v]);
    return sum;
  }
};

// Each column of pixels is interleaved once for all outputs that see it.
template <typename Kind, bool kEven>
void slide_by_1(DepthwiseWork work, DepthwiseRows rows) {  // copies: stores to y do not change them
  constexpr int64_t kTaps = Kind::kTaps;
  const typename Kind::Finish finish(work);
  const Columns<Kind> columns(work, rows);
  Vector taps[Columns<Kind>::kGroups][kTaps], oldest[kTaps], older[kTaps];
  columns.template load<kEven>(rows, 0, taps);
#pragma GCC unroll 4
  for (int64_t v = 0; v < kTaps; ++v) oldest[v] = columns.add(columns.bias[v], taps, 0, v);
  columns.template load<kEven>(rows, 1, taps);
#pragma GCC unroll 4
  for (int64_t v = 0; v < kTaps; ++v) {
    oldest[v] = columns.add(oldest[v], taps, 1, v);
    older[v] = columns.add(columns.bias[v], taps, 0, v);
  }
  uint8_t *y = work.y;
  for (int64_t i = 0; i < work.count; ++i, y += work.y_stride) {
    columns.template load<kEven>(rows, i + 2, taps);
    Floats values[kTaps];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kTaps; ++v) {
      values[v] = to_float(columns.add(oldest[v], taps, 2, v));
      oldest[v] = columns.add(older[v], taps, 1, v);
      older[v] = columns.add(columns.bias[v], taps, 0, v);
    }
    finish.store(values, y);
    __builtin_prefetch(y + rows.y_ahead, 1);
  }
}

template <typename Kind, bool kEven>
void slide_by_2(DepthwiseWork work, DepthwiseRows rows) {
  constexpr int64_t kTaps = Kind::kTaps;
  const typename Kind::Finish finish(work);
  const Columns<Kind> columns(work, rows);
  Vector taps[Columns<Kind>::kGroups][kTaps], sums[kTaps];
  columns.template load<kEven>(rows, 0, taps);
#pragma GCC unroll 4
  for (int64_t v = 0; v < kTaps; ++v) sums[v] = columns.add(columns.bias[v], taps, 0, v);
  uint8_t *y = work.y;
  for (int64_t i = 0; i < work.count; ++i, y += work.y_stride) {
    columns.template load<kEven>(rows, 2 * i + 1, taps);
#pragma GCC unroll 4
    for (int64_t v = 0; v < kTaps; ++v) sums[v] = columns.add(sums[v], taps, 1, v);
    columns.template load<kEven>(rows, 2 * i + 2, taps);
    Floats values[kTaps];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kTaps; ++v) {
      values[v] = to_float(columns.add(sums[v], taps, 2, v));
      sums[v] = columns.add(columns.bias[v], taps, 0, v);
    }
    finish.store(values, y);
    __builtin_prefetch(y + rows.y_ahead, 1);
  }
}

template <typename Kind>
void slide_by_1(const DepthwiseWork &work, const DepthwiseRows &rows) {
  rows.step != 0 ? slide_by_1<Kind, true>(work, rows) : slide_by_1<Kind, false>(work, rows);
}

template <typename Kind>
void slide_by_2(const DepthwiseWork &work, const DepthwiseRows &rows) {
  rows.step != 0 ? slide_by_2<Kind, true>(work, rows) : slide_by_2<Kind, false>(work, rows);
}

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
