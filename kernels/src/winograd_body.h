// Bodies of the Winograd loops. Included by one source file for each instruction set, which defines KVANT_ISA (a
// namespace) and, before this, in that namespace: kLanes 32-bit integers as Ints and as many floats as Floats, twice as
// many 16-bit integers as Shorts (both kinds of integers unsigned: they wrap), kRows tiles and kVectors of outputs that
// are multiplied at a time, and the functions widen, broadcast, multiply_add, shift_right_6, floats_of, ints_of, product
// (of signed integers and floats), rounded (within bounds), load_bytes, load_words, store_bytes, store_words, and
// store_pixels (rounds kLanes outputs of four pixels, within ByteBounds). Nothing here may call an inline function of a
// header: the linker could keep the copy of another instruction set.
namespace kvant {
namespace KVANT_ISA {
namespace {

constexpr int64_t kPanel = kVectors * kLanes;
constexpr uint32_t kInverseOf9 = 0x38E38E39;  // modulo 2^32

template <typename T>
inline T load(const void *from) {
  T value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

template <typename T>
inline void store(void *to, T value) {
  __builtin_memcpy(to, &value, sizeof value);
}

// The rows (4 0 -5 0 1 0), (0 -4 -4 1 1 0), (0 4 -4 -1 1 0), (0 -2 -1 2 1 0), (0 2 -1 -2 1 0), (0 4 0 -5 0 1).
inline void transform_six(Shorts (&d)[6]) {
  const Shorts a = d[3] - d[1], b = d[4] - d[2], a2 = a + a;
  const Shorts even = d[4] - (d[2] << 2), odd = d[3] - (d[1] << 2);
  const Shorts first = ((d[0] - d[2]) << 2) + b, last = d[5] - d[3] - (a << 2);
  d[0] = first;
  d[1] = even + odd;
  d[2] = even - odd;
  d[3] = b + a2;
  d[4] = b - a2;
  d[5] = last;
}

// The rows (4 0 -4 0), (0 -3 -3 0), (0 3 -3 0) and (0 -4 0 4), for the points 0, 1, -1 and infinity: up to the restoring
// matrix the transform of F(2, 3), so scaled that what restores four outputs nearly restores these two.
inline void transform_four(Shorts (&d)[6]) {
  const Shorts sum = d[1] + d[2], difference = d[1] - d[2];
  d[0] = (d[0] - d[2]) << 2;
  d[5] = (d[3] - d[1]) << 2;
  d[1] = Shorts{} - (sum + (sum << 1));
  d[2] = difference + (difference << 1);
}

template <bool kShort>
inline void transform_line(Shorts (&d)[6]) {
  kShort ? transform_four(d) : transform_six(d);
}

// Whether a line of a tile has this point: not 2 and -2, if it is short.
template <bool kShort>
constexpr bool has_point(int64_t point) {
  return !kShort || (point != 3 && point != 4);
}

// A distance that the compiler cannot see through: else it computes all the addresses beforehand, more of them than there
// are registers.
inline int64_t opaque(int64_t distance) {
  __asm__("" : "+r"(distance));
  return distance;
}

template <bool kLow, bool kNarrow>
void transform_as(const uint8_t *x, int64_t row, int64_t column, int64_t channels, int16_t *points, int64_t plane) {
  for (int64_t c = 0; c < channels; c += 2 * kLanes, x += 2 * kLanes, points += 2 * kLanes) {
    Shorts half[6][6];
    const uint8_t *pixel = x;
    const int64_t right = opaque(column), down = opaque(row);
#pragma GCC unroll 6
    for (int64_t j = 0; j < (kNarrow ? 4 : 6); ++j, pixel += right) {
      Shorts d[6];
      const uint8_t *from = pixel;
#pragma GCC unroll 6
      for (int64_t i = 0; i < (kLow ? 4 : 6); ++i, from += down) d[i] = widen(from);
      transform_line<kLow>(d);
#pragma GCC unroll 6
      for (int64_t i = 0; i < 6; ++i) {
        if (has_point<kLow>(i)) half[i][j] = d[i];
      }
    }
    int16_t *to = points;
    const int64_t next = opaque(plane);
#pragma GCC unroll 6
    for (int64_t i = 0; i < 6; ++i) {
      if (has_point<kLow>(i)) transform_line<kNarrow>(half[i]);
#pragma GCC unroll 6
      for (int64_t j = 0; j < 6; ++j, to += next) {
        if (has_point<kLow>(i) && has_point<kNarrow>(j)) store(to, half[i][j]);
      }
    }
  }
}

void transform(const WinogradTile &tile, const uint8_t *x, int64_t row, int64_t column, int64_t channels, int16_t *points,
               int64_t plane) {
  const bool low = tile.rows <= 2, narrow = tile.columns <= 2;
  const auto function = low ? (narrow ? transform_as<true, true> : transform_as<true, false>)
                            : (narrow ? transform_as<false, true> : transform_as<false, false>);
  function(x, row, column, channels, points, plane);
}

// The rows (3 0 0), (1 1 1), (1 -1 1), (1 2 4), (1 -2 4), (0 0 3).
inline void transform_three(const Shorts (&w)[3], Shorts (&points)[6]) {
  const Shorts ends = w[0] + w[2], twice = w[1] + w[1], far = w[0] + (w[2] << 2);
  points[0] = w[0] + (w[0] << 1);
  points[1] = ends + w[1];
  points[2] = ends - w[1];
  points[3] = far + twice;
  points[4] = far - twice;
  points[5] = w[2] + (w[2] << 1);
}

void kernels(const WinogradKernels &k) {
  const int8_t *from = k.weights;
  int16_t *points = k.points;
  for (int64_t vector = 0; vector < k.vectors; ++vector, from += 9 * 2 * kLanes, points += 2 * kLanes) {
    Shorts half[6][3];
#pragma GCC unroll 3
    for (int64_t x = 0; x < 3; ++x) {
      const Shorts down[3] = {widen(from + 2 * kLanes * x), widen(from + 2 * kLanes * (3 + x)),
                              widen(from + 2 * kLanes * (6 + x))};
      Shorts column[6];
      transform_three(down, column);
#pragma GCC unroll 6
      for (int64_t i = 0; i < 6; ++i) half[i][x] = column[i];
    }
    int16_t *to = points;
    const int64_t next = opaque(k.plane);
#pragma GCC unroll 6
    for (int64_t i = 0; i < 6; ++i) {
      Shorts row[6];
      transform_three(half[i], row);
#pragma GCC unroll 6
      for (int64_t j = 0; j < 6; ++j, to += next) store(to, row[j]);
    }
  }
}

// A stretch of memory to fetch into the second-level cache while something else is computed.
struct Ahead {
  const int16_t *next;
  int64_t lines;  // for each pair of channels
};

constexpr int64_t kLine = 32;  // 16-bit integers of a cache line

// R tiles times V vectors of outputs.
template <int64_t R, int64_t V>
void product(int64_t channels, const int16_t *points, const int16_t *weights, Ahead ahead, int32_t *sums) {
  Ints acc[R][V];
#pragma GCC unroll 16
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) acc[r][v] = Ints{};
  }
  for (int64_t c = 0; c < channels; c += 2, weights += 2 * V * kLanes) {
    Ints columns[V];
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) columns[v] = load<Ints>(weights + 2 * v * kLanes);
    for (int64_t l = 0; l < ahead.lines; ++l, ahead.next += kLine) __builtin_prefetch(ahead.next, 0, 2);
#pragma GCC unroll 16
    for (int64_t r = 0; r < R; ++r) {
      const Ints row = broadcast(points + r * channels + c);
#pragma GCC unroll 4
      for (int64_t v = 0; v < V; ++v) acc[r][v] = multiply_add(acc[r][v], row, columns[v]);
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) store(sums + r * kWinogradBlock + v * kLanes, acc[r][v]);
  }
}

using Product = void (*)(int64_t, const int16_t *, const int16_t *, Ahead, int32_t *);

template <int64_t V, int64_t R = 1>
Product product_of(int64_t rows) {
  if constexpr (R < kRows) {
    if (rows > R) return product_of<V, R + 1>(rows);
  }
  return product<R, V>;
}

template <int64_t V = 1>
Product product_of_width(int64_t vectors, int64_t rows) {
  if constexpr (V < kVectors) {
    if (vectors > V) return product_of_width<V + 1>(vectors, rows);
  }
  return product_of<V>(rows);
}

// Tiles at one point times one panel of weights, in stretches of nearly the same number of tiles.
void multiply_panel(const WinogradProducts &p, int64_t tiles, const int16_t *points, int64_t vectors, const int16_t *weights,
                    const int16_t *next, int32_t *sums) {
  const int64_t stretches = (tiles + kRows - 1) / kRows;
  if (stretches == 0) return;
  const int64_t lines = vectors * kLanes / 16;
  const int64_t share = (lines + stretches - 1) / stretches, fetching = lines / share;
  for (int64_t s = 0, tile = 0; s < stretches; ++s) {
    const int64_t rows = (tiles - tile + stretches - s - 1) / (stretches - s);
    const Ahead ahead = {next + s * share * p.channels / 2 * kLine, s < fetching ? share : 0};
    product_of_width(vectors, rows)(p.channels, points + tile * p.channels, weights, ahead,
                                    sums + tile * kWinogradBlock);
    tile += rows;
  }
}

void multiply(const WinogradProducts &p) {
  const WinogradTiles &all = p.tiles;
  const int64_t high = all.full + all.narrow, wide = all.low + all.full;
  for (int64_t point = 0; point < kWinogradPoints; ++point) {
    const bool of_high = !has_point<true>(point / 6), of_wide = !has_point<true>(point % 6);
    const int64_t skipped = of_high ? all.low : 0;
    const int64_t tiles = of_high ? (of_wide ? all.full : high) : of_wide ? wide : high + all.low + all.both;
    const int16_t *weights = p.weights + point * p.weights_plane;
    for (int64_t first = 0; first < p.outputs; first += kPanel) {
      const int64_t width = p.outputs - first < kPanel ? p.outputs - first : kPanel;
      const bool last = point == kWinogradPoints - 1 && first + width == p.outputs;
      const int16_t *next = weights + p.channels * width;
      multiply_panel(p, tiles, p.points + point * p.points_plane + skipped * p.channels, width / kLanes, weights,
                     last ? p.next_weights : next, p.sums + point * p.sums_plane + skipped * kWinogradBlock + first);
      weights = next;
    }
  }
}

// 24 times the transposed inverse: (2 -4 -4 1 1 0), (0 -4 4 2 -2 0), (0 -4 -4 4 4 0), (0 -4 4 8 -8 8), up to
// transform_six's scale.
inline void restore_four(const Ints (&m)[6], Ints (&y)[4]) {
  const Ints a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], d = m[3] - m[4];
  y[0] = ((m[0] - (a + a)) << 1) + c;
  y[1] = (d - (b + b)) << 1;
  y[2] = (c - a) << 2;
  y[3] = (((d + m[5]) << 1) - b) << 2;
}

// The same of transform_four: (2 -4 -4 0), (0 -4 4 2).
inline void restore_two(const Ints (&m)[6], Ints (&y)[4]) {
  const Ints a = m[1] + m[2], b = m[1] - m[2];
  y[0] = (m[0] - (a + a)) << 1;
  y[1] = (m[5] - (b + b)) << 1;
  y[2] = y[3] = Ints{};
}

template <bool kShort>
inline void restore_line(const Ints (&m)[6], Ints (&y)[4]) {
  kShort ? restore_two(m, y) : restore_four(m, y);
}

struct VectorBounds {
  Floats low, high;  // without the zero point
  Ints zero;
};

inline VectorBounds vector_bounds(const kvant_target &target) {
  return {floats_of(static_cast<float>(target.low - target.zero_point)),
          floats_of(static_cast<float>(target.high - target.zero_point)), ints_of(target.zero_point)};
}

inline Ints settle(Floats value, const VectorBounds &bounds) {
  return rounded(value, bounds.low, bounds.high) + bounds.zero;
}

// What is added to the results.
struct VectorAddition {
  Floats multiplier, added_multiplier;
  Ints added_zero;
  VectorBounds result;
};

inline VectorAddition vector_addition(const kvant_addend &addend) {
  return {floats_of(addend.multiplier), floats_of(addend.added_multiplier), ints_of(addend.zero_point),
          vector_bounds(addend.target)};
}

inline Floats add(Floats value, const VectorBounds &bounds, Ints added, const VectorAddition &a) {
  const Ints own = rounded(value, bounds.low, bounds.high);
  return product(own, a.multiplier) + product(added - a.added_zero, a.added_multiplier);
}

// What is the same for all tiles; `bytes` are the bounds of what is written.
struct Ending {
  VectorBounds bounds;
  VectorAddition addition;
  ByteBounds bytes;
};

// The numbers of kLanes outputs.
struct Lane {
  Ints bias;
  Floats multipliers;
};

inline void store_as(uint8_t *y, Ints values) { store_bytes(y, values); }
inline void store_as(int16_t *y, Ints values) { store_words(y, values); }

template <typename Out>
inline void store_some(Out *y, Ints values, int64_t count) {
  if (count >= kLanes) return store_as(y, values);
  Out all[kLanes];
  store_as(all, values);
  for (int64_t i = 0; i < count; ++i) y[i] = all[i];
}

inline Ints load_as(const uint8_t *from) { return load_bytes(from); }
inline Ints load_as(const int16_t *from) { return load_words(from); }

template <typename Out>
inline Ints load_some(const Out *from, int64_t count) {
  if (count >= kLanes) return load_as(from);
  Out all[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) all[i] = from[i];
  return load_as(all);
}

// What a tile's results are made for. Where it is simple, all of its pixels and outputs exist, and no value reaches 2^31.
template <typename Type, bool kAddsOthers, bool kLowTile, bool kNarrowTile, bool kIsSimple>
struct Case {
  using Out = Type;
  static constexpr bool kAdds = kAddsOthers, kLow = kLowTile, kNarrow = kNarrowTile, kSimple = kIsSimple;
  static constexpr bool kSimpleBytes = kSimple && sizeof(Out) == 1;
};

// Restores a tile down its columns.
template <typename Kind>
inline void restore_columns(const int32_t *sums, int64_t plane, Ints (&half)[4][6]) {
  const int64_t next = opaque(plane);
#pragma GCC unroll 6
  for (int64_t j = 0; j < 6; ++j, sums += next) {
    if (!has_point<Kind::kNarrow>(j)) continue;
    Ints m[6], column[4];
    const int32_t *from = sums;
#pragma GCC unroll 6
    for (int64_t i = 0; i < 6; ++i, from += 6 * next) {
      if (has_point<Kind::kLow>(i)) m[i] = load<Ints>(from);
    }
    restore_line<Kind::kLow>(m, column);
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) half[i][j] = column[i];
  }
}

// One vector of outputs of a tile, the first of them number `first` of the block.
template <typename Kind>
void finish_vector(const WinogradFinish &f, const int32_t *sums, const Lane &lane, const WinogradTile &tile,
                   int64_t first, const Ending &ending) {
  using Out = typename Kind::Out;
  const int64_t count = Kind::kSimple ? kLanes : f.outputs - first;
  const int64_t right = opaque(f.column), added_right = opaque(f.added_column);
  Ints half[4][6];
  restore_columns<Kind>(sums, f.sums_plane, half);
  uint8_t *row = tile.y + first * static_cast<int64_t>(sizeof(Out));
  const uint8_t *added_row = Kind::kAdds ? tile.added + first * static_cast<int64_t>(sizeof(Out)) : row;
#pragma GCC unroll 4
  for (int64_t i = 0; i < (Kind::kLow ? 2 : 4); ++i, row += f.row, added_row += f.added_row) {
    if (!Kind::kSimple && i == tile.rows) return;
    Ints pixels[4];
    restore_line<Kind::kNarrow>(half[i], pixels);
    Floats values[4];
    uint8_t *to = row;
    const uint8_t *added = added_row;
#pragma GCC unroll 4
    for (int64_t j = 0; j < (Kind::kNarrow ? 2 : 4); ++j, to += right, added += added_right) {
      if (!Kind::kSimple && j == tile.columns) break;
      values[j] = product(shift_right_6(pixels[j] * kInverseOf9) + lane.bias, lane.multipliers);
      if (Kind::kAdds) {
        const Ints others = load_some(reinterpret_cast<const Out *>(added), count);
        values[j] = add(values[j], ending.bounds, others, ending.addition);
      }
      if (Kind::kSimpleBytes) continue;
      const VectorBounds &bounds = Kind::kAdds ? ending.addition.result : ending.bounds;
      store_some(reinterpret_cast<Out *>(to), settle(values[j], bounds), count);
    }
    if (Kind::kSimpleBytes) store_pixels(row, right, values, ending.bytes);
  }
}

template <typename Out, bool kAdds, bool kLow, bool kNarrow>
void finish_tiles(const WinogradFinish &f, const WinogradTile *tiles, int64_t begin, int64_t count) {
  const Ending ending = {vector_bounds(f.target), kAdds ? vector_addition(*f.addend) : VectorAddition{},
                         byte_bounds(kAdds ? f.addend->target : f.target)};
  for (int64_t t = begin; t < begin + count; ++t) {
    const bool whole = f.bounded && !kLow && !kNarrow && tiles[t].rows == 4 && tiles[t].columns == 4;
    for (int64_t o = 0; o < f.outputs; o += kLanes) {
      const Lane lane = {load<Ints>(f.bias + o), load<Floats>(f.multipliers + o)};
      const int32_t *sums = f.sums + t * kWinogradBlock + o;
      if (whole && f.outputs - o >= kLanes) {
        finish_vector<Case<Out, kAdds, false, false, true>>(f, sums, lane, tiles[t], o, ending);
      } else {
        finish_vector<Case<Out, kAdds, kLow, kNarrow, false>>(f, sums, lane, tiles[t], o, ending);
      }
    }
  }
}

template <typename Out, bool kAdds>
void finish_as(const WinogradFinish &f, const WinogradTile *tiles, const WinogradTiles &counts) {
  const int64_t narrow = counts.low + counts.full;
  finish_tiles<Out, kAdds, true, false>(f, tiles, 0, counts.low);
  finish_tiles<Out, kAdds, false, false>(f, tiles, counts.low, counts.full);
  finish_tiles<Out, kAdds, false, true>(f, tiles, narrow, counts.narrow);
  finish_tiles<Out, kAdds, true, true>(f, tiles, narrow + counts.narrow, counts.both);
}

void finish(const WinogradFinish &f, const WinogradTile *tiles, const WinogradTiles &counts) {
  const bool bytes = f.target.dtype == KVANT_UINT8;
  if (f.addend == nullptr) return (bytes ? finish_as<uint8_t, false> : finish_as<int16_t, false>)(f, tiles, counts);
  (bytes ? finish_as<uint8_t, true> : finish_as<int16_t, true>)(f, tiles, counts);
}

}  // namespace

extern const WinogradLoops kWinograd;
const WinogradLoops kWinograd = {kPanel, kLanes, kernels, transform, multiply, finish};

}  // namespace KVANT_ISA
}  // namespace kvant
