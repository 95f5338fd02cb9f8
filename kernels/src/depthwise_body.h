// Depthwise convolution, a few pixels at a time. Included by one source file for each instruction set, which defines
// KVANT_ISA (a namespace) and, before this, in that namespace: kLanes, Vector, Floats, load_vector, to_float, to_upper_half (of 32
// bits) and
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

// For pairs of taps: one above the other in the first two rows, side by side in the third one, which leaves fewer places
// without a tap.
template <typename Kind>
struct Pairs {
  Vector upper[3][2], first[2], last[2], bias[2];  // `first`: of the left and the middle column, `last`: of the right one
  Vector padding, before;                          // `before`: the third row of the column before

  __attribute__((always_inline)) Pairs(const DepthwiseWork &work, const DepthwiseRows &rows)
      : padding(Kind::splat(rows.zero_point)), before(padding) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < 2; ++v) {
      const uint8_t *weights = work.weights + v * kLanes * 4;
      const int64_t group = 2 * kLanes * 4;
      bias[v] = load_vector(work.bias + v * kLanes);
#pragma GCC unroll 3
      for (int64_t c = 0; c < 3; ++c) upper[c][v] = load_vector(weights + 2 * c * group);
      // Packed for a third and a fourth row, which has no taps: the upper halves are zero.
      first[v] = load_vector(weights + group) | to_upper_half(load_vector(weights + 3 * group));
      last[v] = to_upper_half(load_vector(weights + 5 * group));
    }
  }

  // A column of the first two rows, and of the third row that column beside the one before.
  template <bool kEven>
  __attribute__((always_inline)) void load(const DepthwiseRows &rows, int64_t column, Vector (&above)[2],
                                           Vector (&below)[2]) {
    const int64_t pixel = column - rows.pad;
    below[0] = before;
    if (static_cast<uint64_t>(pixel) >= static_cast<uint64_t>(rows.pixels)) {
      above[0] = above[1] = before = padding;
    } else {
      const int64_t at = pixel * rows.step;
      above[0] = Kind::load(rows.x[0] + (kEven ? at : pixel * rows.steps[0]));
      above[1] = Kind::load(rows.x[1] + (kEven ? at : pixel * rows.steps[1]));
      before = Kind::load(rows.x[2] + (kEven ? at : pixel * rows.steps[2]));
      if (kEven) __builtin_prefetch(rows.x[2] + at + rows.ahead);
      Kind::interleave(above);
    }
    below[1] = before;
    Kind::interleave(below);
  }
};

template <typename Kind, bool kEven>
void slide_pairs(DepthwiseWork work, DepthwiseRows rows) {  // copies: stores to y do not change them
  const typename Kind::Finish finish(work);
  Pairs<Kind> pairs(work, rows);
  Vector above[2], below[2], oldest[2], older[2];
  pairs.template load<kEven>(rows, 0, above, below);
#pragma GCC unroll 2
  for (int64_t v = 0; v < 2; ++v) oldest[v] = Kind::add(pairs.bias[v], above[v], pairs.upper[0][v]);
  pairs.template load<kEven>(rows, 1, above, below);
#pragma GCC unroll 2
  for (int64_t v = 0; v < 2; ++v) {
    oldest[v] = Kind::add(Kind::add(oldest[v], above[v], pairs.upper[1][v]), below[v], pairs.first[v]);
    older[v] = Kind::add(pairs.bias[v], above[v], pairs.upper[0][v]);
  }
  uint8_t *y = work.y;
  for (int64_t i = 0; i < work.count; ++i, y += work.y_stride) {
    pairs.template load<kEven>(rows, i + 2, above, below);
    Floats values[2];
#pragma GCC unroll 2
    for (int64_t v = 0; v < 2; ++v) {
      values[v] = to_float(Kind::add(Kind::add(oldest[v], above[v], pairs.upper[2][v]), below[v], pairs.last[v]));
      oldest[v] = Kind::add(Kind::add(older[v], above[v], pairs.upper[1][v]), below[v], pairs.first[v]);
      older[v] = Kind::add(pairs.bias[v], above[v], pairs.upper[0][v]);
    }
    finish.store(values, y);
    __builtin_prefetch(y + rows.y_ahead, 1);
  }
}

template <typename Kind>
void slide_pairs(const DepthwiseWork &work, const DepthwiseRows &rows) {
  rows.step != 0 ? slide_pairs<Kind, true>(work, rows) : slide_pairs<Kind, false>(work, rows);
}

template <typename Kind>
void slide_by_1(const DepthwiseWork &work, const DepthwiseRows &rows) {
  rows.step != 0 ? slide_by_1<Kind, true>(work, rows) : slide_by_1<Kind, false>(work, rows);
}

template <typename Kind>
void slide_by_2(const DepthwiseWork &work, const DepthwiseRows &rows) {
  rows.step != 0 ? slide_by_2<Kind, true>(work, rows) : slide_by_2<Kind, false>(work, rows);
}

// Those of an instruction set without products of bytes.
[[maybe_unused]] constexpr DepthwiseLoops loops_of_shorts() {
  return {kLanes,
          lane_channel,
          {nullptr, {nullptr, nullptr}},
          {depthwise<ShortsOfUint8>, {slide_pairs<ShortsOfUint8>, slide_by_2<ShortsOfUint8>}},
          {depthwise<Shorts>, {slide_pairs<Shorts>, slide_by_2<Shorts>}}};
}

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
