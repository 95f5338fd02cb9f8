// Simple tiles of one row of output pixels, and how the results of each are finished among the products of others. Included
// by direct_body.h, which says what is defined before. Nothing here may call an inline function of a header either.
#include "direct_products_body.h"

namespace kvant {
namespace KVANT_ISA {
namespace {

template <int64_t P, int64_t V>
__attribute__((always_inline)) inline void begin(const DirectWork &work, Vector (&sums)[P][V]) {
#pragma GCC unroll 4
  for (int64_t v = 0; v < V; ++v) {
    const Vector bias = load(reinterpret_cast<const uint8_t *>(work.narrow_bias + v * kLanes));
#pragma GCC unroll 16
    for (int64_t p = 0; p < P; ++p) sums[p][v] = bias;
  }
}

template <Simple kSimple, int64_t V, typename Last>
__attribute__((always_inline)) inline void store_simple(const Last &last, const Vector (&sums)[V], const uint8_t *added, uint8_t *y) {
  Floats values[V];
  Vector whole[V];
  last.convert(sums, values);
  last.scale(values, added);
  last.round(values, whole);
  last.template pack<kSimple>(whole, y);
}

// Where a pixel finds what is added to it, and where its results go. The distances to the next pixel stay in memory: there are
// not enough registers for them.
struct Place {
  const DirectWork *work;
  const uint8_t *added;
  uint8_t *y;

  __attribute__((always_inline)) Place after(int64_t pixels) const {
    if (pixels == 0) return *this;
    const DirectWork *now = fresh(work);
    return {work, added + pixels * now->added_stride, y + pixels * now->y_stride};
  }
};

// The compiler leaves these values where they are computed, in registers. Otherwise it moves conversions away from where they
// are written, reads weights anew for each product, and then has too few registers for the sums.
template <typename T, int64_t V>
__attribute__((always_inline)) inline void keep([[maybe_unused]] T (&values)[V]) {
#if defined(__x86_64__)  // the only processor that needs it, and whose registers are called so
#pragma GCC unroll 4
  for (int64_t v = 0; v < V; ++v) __asm__ volatile("" : "+v"(values[v]));
#endif
}

// The pixels kFrom to kTo of a tile.
template <int64_t kFrom, int64_t kTo, int64_t P, int64_t V>
__attribute__((always_inline)) inline void begin_some(const DirectWork &work, Vector (&sums)[P][V]) {
  Vector bias[1][V];
  begin(work, bias);
  keep(bias[0]);
#pragma GCC unroll 16
  for (int64_t p = kFrom; p < kTo; ++p) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) sums[p][v] = bias[0][v];
  }
}

// Turns the sums of H pixels into results in small pieces: each pixel takes four, and between two of them come earlier ones of
// the pixels behind it, so that none waits for what has only just begun.
template <Simple kSimple, int64_t H, int64_t V, typename Last>
class End {
 public:
  static constexpr int64_t kPieces = 4 * (H + 3);  // some of them empty

  End(const Last &last, const Place &place) : last_(last), place_(place) {}

  __attribute__((always_inline)) void piece(int64_t piece, const Vector (*sums)[V]) {
    const int64_t step = 3 - piece % 4, pixel = piece / 4 - step;
    if (pixel < 0 || pixel >= H) return;
    if (step == 0) {
      last_.convert(sums[pixel], values_[pixel]);
      keep(values_[pixel]);
    } else if (step == 1) {
      last_.scale(values_[pixel], place_.after(pixel).added);
      keep(values_[pixel]);
    } else if (step == 2) {
      last_.round(values_[pixel], whole_[pixel]);
      keep(whole_[pixel]);
    } else {
      last_.template pack<kSimple>(whole_[pixel], place_.after(pixel).y);
    }
  }

 private:
  const Last &last_;
  const Place place_;
  Floats values_[H][V];
  Vector whole_[H][V];
};

// No end of any pixel.
struct Nothing {
  static constexpr int64_t kPieces = 0;
  template <typename Sums>
  void piece(int64_t, const Sums *) {}
};

// Products of kGroups groups with the pixels kFrom to kTo of a tile, the first of which sees x, and among them all pieces of
// the end of the pixels from kEnded on.
template <typename Product, bool kFetches, int64_t kFrom, int64_t kTo, int64_t kGroups, int64_t kEnded, int64_t P, int64_t V,
          typename Ends>
__attribute__((always_inline)) inline void accumulate_some(Vector (&sums)[P][V], const uint8_t *x, const Steps<P / 2> &steps,
                                                           const Stream &stream, Ends *ends) {
  constexpr int64_t kPixels = kTo - kFrom, kBlocks = kGroups * kPixels, kMost = (Ends::kPieces + kBlocks - 1) / kBlocks;
  const uint8_t *weights = fresh(stream.weights);
#pragma GCC unroll 8
  for (int64_t g = 0; g < kGroups; ++g) {
    Vector columns[V];
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) columns[v] = load(weights + (g * V + v) * kVectorBytes);
    keep(columns);
    if (kFetches) fetch_ahead<V>(weights + g * V * kVectorBytes, stream.next + g * stream.step);
    x = fresh(g == 0 ? x : x + kGroupBytes);
#pragma GCC unroll 16
    for (int64_t p = 0; p < kPixels; ++p) {
      const Vector pixel = broadcast(x + steps.of(p));
#pragma GCC unroll 4
      for (int64_t v = 0; v < V; ++v) sums[kFrom + p][v] = Product::add(sums[kFrom + p][v], pixel, columns[v]);
      const int64_t block = g * kPixels + p, piece = Ends::kPieces * block / kBlocks;
#pragma GCC unroll 16
      for (int64_t i = 0; i < kMost; ++i) {
        if (piece + i < Ends::kPieces * (block + 1) / kBlocks) ends->piece(piece + i, sums + kEnded);
      }
    }
  }
}

// What is added was made some layers before, and of a pixel a block reads some lines only: no processor foresees that.
constexpr int64_t kAddedAhead = 3;  // tiles

template <int64_t P>
inline void fetch_lines(const uint8_t *first, int64_t stride) {
#pragma GCC unroll 16
  for (int64_t p = 0; p < P; ++p) __builtin_prefetch(first + p * stride);
}

// Tiles one after the other in a row of output pixels: what the first pixel sees, what is added to it (if anything is), where
// its results go, and the number of the first tile among those of its work item.
struct Row {
  const uint8_t *x, *added;
  uint8_t *y;
  int64_t first, tiles;
};

// Simple tiles one after the other in a row of output pixels.
template <typename Product, Simple kSimple, int64_t P, int64_t V, typename Last>
__attribute__((noinline)) void simple_tiles(const DirectWork &work, const Last &last, const Row &row, Fetch *fetch) {
  const Steps<P / 2> steps(work.column);
  Seen x{row.x, row.x + P / 2 * work.column};
  Place place{&work, row.added, row.y};
  for (int64_t t = row.first; t < row.first + row.tiles; ++t) {
    fetch->some();
    if constexpr (Last::kAdds) fetch_lines<P>(place.after(kAddedAhead * P).added, work.added_stride);
    Vector sums[P][V];
    begin(work, sums);
    Stream stream{work.weights, nullptr, 0};
    for (int64_t r = 0; r < work.runs; ++r) {
      const Seen first = x.after(work.offsets[r]);
      accumulate_row<Product, false, P, V>(sums, first, steps, first.first + work.groups * kGroupBytes, &stream);
    }
#pragma GCC unroll 16
    for (int64_t p = 0; p < P; ++p) {
      const Place pixel = place.after(p);
      store_simple<kSimple>(last, sums[p], pixel.added, pixel.y);
    }
    x = x.after(P * work.column);
    place = place.after(P);
  }
}

// The same, where the processor multiplies so fast that a tile's end would hold it up: a half of the pixels takes its first
// and its last kGroups groups alone, and among those products the other half, which has none left, is finished.
template <typename Product, Simple kSimple, bool kFetches, int64_t kGroups, int64_t P, int64_t V, typename Last>
__attribute__((noinline)) void overlapping_tiles(const DirectWork &work, const Last &last, const Row &row) {
  static_assert(P % 2 == 0, "a tile has two halves");
  constexpr int64_t H = P / 2, kBytes = kGroups * kGroupBytes;
  const Steps<H> steps(work.column);
  Seen x{row.x, row.x + H * work.column};
  Place place{&work, row.added, row.y};
  Vector sums[P][V];
  Nothing nothing;
  Stream stream = kFetches ? stream_of(work, row.first) : Stream{work.weights, nullptr, 0};
  begin_some<0, H>(work, sums);
  accumulate_some<Product, kFetches, 0, H, kGroups, H>(sums, x.first, steps, stream, &nothing);
  for (int64_t t = row.first + 1;; ++t) {
    begin_some<H, P>(work, sums);
    accumulate_some<Product, false, H, P, kGroups, 0>(sums, x.second, steps, stream, &nothing);
    stream.skip<V>(kGroups);
    Seen at = x.after(kBytes);
    for (int64_t r = 0, runs = work.runs; r < runs; ++r) {
      const DirectWork *now = fresh(&work);
      const int64_t offset = now->offsets[r], bytes = offset + now->groups * kGroupBytes;
      if (r > 0) at = x.after(offset);
      const uint8_t *end = x.first + (r + 1 < runs ? bytes : bytes - kBytes);
      at = accumulate_row<Product, kFetches, P, V>(sums, at, steps, end, &stream);
    }
    accumulate_some<Product, kFetches, 0, H, kGroups, H>(sums, at.first, steps, stream, &nothing);
    End<kSimple, H, V, Last> first_end(last, place);
    accumulate_some<Product, false, H, P, kGroups, 0>(sums, at.second, steps, stream, &first_end);
    place = place.after(H);
    if (t == row.first + row.tiles) break;
    x = x.after(P * work.column);
    if constexpr (Last::kAdds) fetch_lines<P>(place.after(kAddedAhead * P).added, work.added_stride);
    stream = kFetches ? stream_of(work, t) : Stream{work.weights, nullptr, 0};
    begin_some<0, H>(work, sums);
    End<kSimple, H, V, Last> second_end(last, place);
    accumulate_some<Product, kFetches, 0, H, kGroups, H>(sums, x.first, steps, stream, &second_end);
    place = place.after(H);
  }
#pragma GCC unroll 16
  for (int64_t p = 0; p < H; ++p) {
    const Place pixel = place.after(p);
    store_simple<kSimple>(last, sums[H + p], pixel.added, pixel.y);
  }
}

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
