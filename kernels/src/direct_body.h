// Direct convolution by tiles of pixels times vectors of outputs. Included by one source file for each instruction set,
// which defines KVANT_ISA (a namespace) and, before this, in that namespace: kLanes, kVectors, kAhead (bytes of weights that
// are fetched ahead; 0: the processor does that itself), kApart (groups at either end of a tile that each half of its pixels
// takes alone, see overlapping_tiles; 0: none), the types Vector (kLanes 32-bit sums or groups) and Floats, the functions
// zero, load, broadcast, store, to_float, from_wide, load_floats, splat, rounded (to an integer, within bounds) and
// load_integers (a block's as floats, no more than there are, in the order of its lanes), the product Shorts, TilePixels<V>
// and Finish<V>, which writes the results of one pixel: by `store` in every case, or fast, in the simple cases that most
// layers are, in the steps convert, scale, round and pack.
// Nothing here may call an inline function of a header: the linker could keep the copy of another instruction set.
#include "direct_row_body.h"

namespace kvant {
namespace KVANT_ISA {
namespace {

// P pixels: what each sees first, and where its results go. `count` of them are real, the first one is number `first`.
template <int64_t P>
struct Pixels {
  const uint8_t *x[P];
  uint8_t *y[P];
  int64_t first, count;
};

inline Floats floats_of(Vector sums) { return to_float(sums); }
inline Floats floats_of(Floats sums) { return sums; }

// What is added to the results of a pixel, which become integers of their own type first, exactly as if they were written
// and read again.
template <int64_t V>
class Addition {
 public:
  static constexpr bool kAdds = true;

  explicit Addition(const DirectWork &work)
      : multipliers_(work.multipliers), outputs_(work.outputs),
        low_(splat(static_cast<float>(work.target->low - work.target->zero_point))),
        high_(splat(static_cast<float>(work.target->high - work.target->zero_point))),
        zero_(splat(static_cast<float>(work.addend->zero_point))), multiplier_(splat(work.addend->multiplier)),
        added_multiplier_(splat(work.addend->added_multiplier)), finish_(of_sums(work)) {}

  // Whether sums of bytes are as simple to store as results that nothing is added to.
  bool simple_bytes() const { return finish_.simple_bytes(); }
  void convert(const Vector (&sums)[V], Floats (&values)[V]) const { finish_.convert(sums, values); }
  void scale(Floats (&values)[V], const uint8_t *added) const { add<uint8_t>(values, added); }
  void round(const Floats (&values)[V], Vector (&whole)[V]) const { finish_.round(values, whole); }
  template <Simple kSimple>
  void pack(const Vector (&whole)[V], uint8_t *y) const {
    finish_.template pack<kSimple>(whole, y);
  }

  template <typename T>
  void add(Floats (&values)[V], const uint8_t *added) const {
    Floats others[V];
    load_integers(reinterpret_cast<const T *>(added), outputs_, others);
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) {
      const Floats own = rounded(values[v] * load_floats(multipliers_ + v * kLanes), low_, high_);
      values[v] = own * multiplier_ + (others[v] - zero_) * added_multiplier_;
    }
  }

  const Finish<V> &finish() const { return finish_; }

 private:
  static Finish<V> of_sums(const DirectWork &work) {
    float ones[V * kLanes];
    for (int64_t i = 0; i < V * kLanes; ++i) ones[i] = 1;
    DirectWork sums = work;
    sums.multipliers = ones;
    sums.target = &work.addend->target;
    sums.bounded = work.bounded_sums;
    sums.addend = nullptr;
    return Finish<V>(sums);
  }

  const float *multipliers_;
  int64_t outputs_;
  Floats low_, high_, zero_, multiplier_, added_multiplier_;
  Finish<V> finish_;
};

// Results of `count` pixels, the first of them number `first`, V vectors of sums of each, with what is added to them.
template <typename T, int64_t V, typename Sums>
void add_and_store_as(const DirectWork &work, const Sums (*sums)[V], int64_t first, int64_t count) {
  const Addition<V> addition(work);
  for (int64_t p = 0; p < count; ++p) {
    Floats values[V];
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) values[v] = floats_of(sums[p][v]);
    addition.template add<T>(values, work.added + (first + p) * work.added_stride);
    addition.finish().store(values, work.y + (first + p) * work.y_stride);
  }
}

template <int64_t V, typename Sums>
__attribute__((noinline)) void add_and_store(const DirectWork &work, const Sums (*sums)[V], int64_t first, int64_t count) {
  if (work.addend->target.dtype == KVANT_UINT8) return add_and_store_as<uint8_t>(work, sums, first, count);
  add_and_store_as<int16_t>(work, sums, first, count);
}

// What is not simple, from memory: choices among registers would make the compiler move all of them.
template <int64_t P, int64_t V>
__attribute__((noinline)) void finish_any(const DirectWork &work, const Finish<V> &finish, const Vector (&sums)[P][V],
                                          const Pixels<P> &pixels) {
  if (work.addend != nullptr) return add_and_store<V>(work, sums, pixels.first, pixels.count);
  for (int64_t p = 0; p < P; ++p) {
    Floats values[V];
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) values[v] = to_float(sums[p][v]);
    finish.store(values, pixels.y[p]);
  }
}

template <typename Product, Simple kSimple, int64_t P, int64_t V>
__attribute__((noinline)) void tile(const DirectWork &work, const Finish<V> &finish, const Pixels<P> &pixels) {
  Vector sums[P][V];
  begin(work, sums);
  Stream stream = stream_of(work, (pixels.first - work.first) / P);
  for (int64_t r = 0; r < work.runs; ++r) {
    accumulate<Product, P, V>(sums, pixels.x, work.offsets[r], work.groups, &stream);
  }
  if (kSimple != Simple::kBytes || finish.simple_bytes()) {
#pragma GCC unroll 16
    for (int64_t p = 0; p < P; ++p) store_simple<kSimple>(finish, sums[p], nullptr, pixels.y[p]);
    return;
  }
  Vector whole[P][V];
#pragma GCC unroll 16
  for (int64_t p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) whole[p][v] = sums[p][v];
  }
  finish_any<P, V>(work, finish, whole, pixels);
}

// Sums of one stretch after the other: int32 within a stretch, int64 across them.
template <typename Product, int64_t P, int64_t V>
__attribute__((noinline)) void wide_tile(const DirectWork &work, const Finish<V> &finish, const Pixels<P> &pixels) {
  int64_t totals[P][V * kLanes];
  for (int64_t p = 0; p < P; ++p) {
    for (int64_t i = 0; i < V * kLanes; ++i) totals[p][i] = work.bias[i];
  }
  Stream stream = {work.weights, work.weights, 0};
  for (int64_t r = 0; r < work.runs; ++r) {
    for (int64_t g = 0; g < work.groups; g += work.stretch) {
      const int64_t left = work.groups - g, groups = left < work.stretch ? left : work.stretch;
      Vector sums[P][V];
      for (int64_t p = 0; p < P; ++p) {
        for (int64_t v = 0; v < V; ++v) sums[p][v] = zero();
      }
      accumulate<Product, P, V>(sums, pixels.x, work.offsets[r] + g * kGroupBytes, groups, &stream);
      int32_t narrow[P][V * kLanes];
      for (int64_t p = 0; p < P; ++p) {
        for (int64_t v = 0; v < V; ++v) store(narrow[p] + v * kLanes, sums[p][v]);
      }
      for (int64_t p = 0; p < P; ++p) {
        for (int64_t i = 0; i < V * kLanes; ++i) totals[p][i] += narrow[p][i];
      }
    }
  }
  Floats values[P][V];
  for (int64_t p = 0; p < P; ++p) {
    for (int64_t v = 0; v < V; ++v) values[p][v] = from_wide(totals[p] + v * kLanes);
  }
  if (work.addend != nullptr) {
    return add_and_store<V>(work, values, pixels.first, pixels.count);
  }
  for (int64_t p = 0; p < P; ++p) finish.store(values[p], pixels.y[p]);
}

template <typename Product>
struct Narrow {
  template <int64_t P, int64_t V>
  static void run(const DirectWork &work, const Finish<V> &finish, const Pixels<P> &pixels) {
    if (finish.simple_shorts()) return tile<Product, Simple::kShorts, P, V>(work, finish, pixels);
    if (finish.all_bytes()) return tile<Product, Simple::kAllBytes, P, V>(work, finish, pixels);
    tile<Product, Simple::kBytes, P, V>(work, finish, pixels);
  }

  // False if they are not simple, or too short.
  template <int64_t P, int64_t V>
  static bool run_row(const DirectWork &work, const Finish<V> &finish, const Row &row, Fetch *fetch) {
    if (work.addend == nullptr) return run_simple<P, V>(work, finish, row, fetch);
    const Addition<V> addition(work);
    return addition.simple_bytes() && run_tiles<Simple::kBytes, P, V>(work, addition, row, fetch);
  }

 private:
  template <int64_t P, int64_t V>
  static bool run_simple(const DirectWork &work, const Finish<V> &finish, const Row &row, Fetch *fetch) {
    if (finish.simple_shorts()) return run_tiles<Simple::kShorts, P, V>(work, finish, row, fetch);
    if (finish.all_bytes()) return run_tiles<Simple::kAllBytes, P, V>(work, finish, row, fetch);
    return finish.simple_bytes() && run_tiles<Simple::kBytes, P, V>(work, finish, row, fetch);
  }

  template <Simple kSimple, int64_t P, int64_t V, typename Last>
  static bool run_tiles(const DirectWork &work, const Last &last, const Row &row, Fetch *fetch) {
    if constexpr (kApart > 0) {
      return run_overlapping<kSimple, kApart, P, V>(work, last, row);
    } else {
      simple_tiles<Product, kSimple, P, V>(work, last, row, fetch);
      return true;
    }
  }

  // With kGroups groups apart, or fewer.
  template <Simple kSimple, int64_t kGroups, int64_t P, int64_t V, typename Last>
  static bool run_overlapping(const DirectWork &work, const Last &last, const Row &row) {
    const bool near = work.next == nullptr && work.runs * work.groups * V * kVectorBytes <= kNear;
    if ((work.runs == 1 ? work.groups / 2 : work.groups) < kGroups) {
      if constexpr (kGroups > 2) return run_overlapping<kSimple, kGroups - 2, P, V>(work, last, row);
      return false;
    }
    if (kGroups == kApart && !near) {
      overlapping_tiles<Product, kSimple, true, kApart, P, V>(work, last, row);
    } else {
      overlapping_tiles<Product, kSimple, false, kGroups, P, V>(work, last, row);
    }
    return true;
  }
};

struct Wide {
  template <int64_t P, int64_t V>
  static void run(const DirectWork &work, const Finish<V> &finish, const Pixels<P> &pixels) {
    wide_tile<Shorts, P, V>(work, finish, pixels);
  }

  template <int64_t P, int64_t V>
  static bool run_row(const DirectWork &, const Finish<V> &, const Row &, Fetch *) {
    return false;
  }
};

struct Division {
  int64_t times, rest;
};

// Everything waits for it, and mostly there is nothing to divide: one row of pixels, or one image.
inline Division divide(int64_t value, int64_t by) {
  return value < by ? Division{0, value} : Division{value / by, value % by};
}

// Goes from output pixel to output pixel.
class Walk {
 public:
  explicit Walk(const DirectWork &work) : work_(work), pixel_(work.first), y_(work.first * work.y_stride) {
    const Division line = divide(work.first, work.width), image = divide(line.times, work.height);
    column_ = line.rest;
    row_ = image.rest;
    x_ = image.times * work.image + row_ * work.row + column_ * work.column;
  }

  const uint8_t *x() const { return work_.x + x_; }
  uint8_t *y() const { return work_.y + y_; }
  int64_t pixel() const { return pixel_; }
  int64_t left_in_row() const { return work_.width - column_; }

  // Within a row.
  void advance(int64_t pixels) {
    pixel_ += pixels;
    column_ += pixels;
    x_ += pixels * work_.column;
    y_ += pixels * work_.y_stride;
    if (column_ < work_.width) return;
    column_ = 0;
    x_ += work_.row - work_.width * work_.column;
    if (++row_ < work_.height) return;
    row_ = 0;
    x_ += work_.image - work_.height * work_.row;
  }

 private:
  const DirectWork &work_;
  int64_t pixel_, x_, y_, column_, row_;
};

// One tile of P pixels; where there are fewer, the last one again, its results thrown away.
template <typename Kind, int64_t P, int64_t V>
void step(const DirectWork &work, const Finish<V> &finish, int64_t count, Walk *walk) {
  Pixels<P> pixels;
  if (count >= P && walk->left_in_row() >= P) {
    pixels.first = walk->pixel();
    pixels.count = P;
#pragma GCC unroll 16
    for (int64_t p = 0; p < P; ++p) {
      pixels.x[p] = walk->x() + p * work.column;
      pixels.y[p] = walk->y() + p * work.y_stride;
    }
    walk->advance(P);
    return Kind::template run<P, V>(work, finish, pixels);
  }
  uint8_t nowhere[V * kLanes * sizeof(int16_t)];
  pixels.first = walk->pixel();
  pixels.count = count < P ? count : P;
  for (int64_t p = 0; p < P; ++p) {
    const bool real = p < count;
    pixels.x[p] = real ? walk->x() : pixels.x[p - 1];
    pixels.y[p] = real ? walk->y() : nowhere;
    if (real) walk->advance(1);
  }
  Kind::template run<P, V>(work, finish, pixels);
}

template <typename Kind, int64_t V>
void run_block(const DirectWork &work) {
  constexpr int64_t kPixels = TilePixels<V>::kCount;
  const Finish<V> finish(work);
  Walk walk(work);
  Fetch fetch(work, work.count / kPixels + 1);
  int64_t left = work.count;
  while (left > 4 || left >= kPixels) {
    const int64_t tiles = (left < walk.left_in_row() ? left : walk.left_in_row()) / kPixels;
    const int64_t number = (walk.pixel() - work.first) / kPixels;
    const Row row{walk.x(), work.added + walk.pixel() * work.added_stride, walk.y(), number, tiles};
    if (tiles > 0 && Kind::template run_row<kPixels, V>(work, finish, row, &fetch)) {
      walk.advance(tiles * kPixels);
      left -= tiles * kPixels;
      continue;
    }
    fetch.some();
    step<Kind, kPixels, V>(work, finish, left, &walk);
    left -= left < kPixels ? left : kPixels;
  }
  if (left > 2) {
    step<Kind, 4, V>(work, finish, left, &walk);
  } else if (left == 2) {
    step<Kind, 2, V>(work, finish, left, &walk);
  } else if (left == 1) {
    step<Kind, 1, V>(work, finish, left, &walk);
  }
}

template <typename Kind>
void run(const DirectWork &work) {
  if (work.vectors == 1) return run_block<Kind, 1>(work);
  if (work.vectors == 2 || kVectors == 2) return run_block<Kind, 2>(work);
  if (work.vectors == 3 || kVectors == 3) return run_block<Kind, (kVectors < 3 ? kVectors : 3)>(work);
  run_block<Kind, kVectors>(work);
}

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
