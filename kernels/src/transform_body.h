// Inner loops of the number-theoretic transform. Included by one source file for each instruction set, which defines
// KVANT_ISA (a namespace) and, before this, in that namespace: kLanes (16-bit lanes of a Vector), kMostRows (tiles that
// are multiplied at a time), Vector, Floats and their operations. Nothing here may call an inline function of a header:
// the linker could keep the copy of another instruction set. transform_fields.h proves the bounds that comments here
// name: R is that of `reduce`.
namespace kvant {
namespace KVANT_ISA {
namespace {

using transform::Elements;
using transform::kAcross;
using transform::kPrimes;
using transform::kSize;
using transform::Modulus;
using transform::Residue;

#define KVANT_INLINE [[gnu::always_inline]] inline

constexpr int64_t kLine = 32;  // 16-bit integers of a cache line
static_assert(kMostRows <= 12);

struct Factor {
  Vector value, factor;
};

KVANT_INLINE Factor spread(const Residue &residue) { return {set16(residue.value), set16(residue.factor)}; }

// a * b modulo p, for any a: within p / 2 + |a| p / 2^17. Both products have the same lower halves, so that the
// difference of their upper halves is the exact quotient by 2^16.
KVANT_INLINE Vector product(Vector a, const Factor &b, Vector prime) {
  return sub16(high16(a, b.value), high16(low16(a, b.factor), prime));
}

struct Reducer {
  Vector prime, nearest;
};

// x minus a multiple of p, for any x: within R.
KVANT_INLINE Vector reduce(Vector x, const Reducer &by) {
  return sub16(x, low16(scaled16(x, by.nearest), by.prime));
}

// Transform of order 4; `fourth` is the root.
KVANT_INLINE void transform4(Vector &a, Vector &b, Vector &c, Vector &d, const Factor &fourth, Vector prime) {
  const Vector s = add16(a, c), t = sub16(a, c), u = add16(b, d), v = product(sub16(b, d), fourth, prime);
  a = add16(s, u);
  c = sub16(s, u);
  b = add16(t, v);
  d = sub16(t, v);
}

// Transform of order 16, which leaves element k at `place(k)`, not reduced. Halves need few reductions halfway.
// `transformed` in transform_fields.h follows it step by step.
template <Elements kElements>
KVANT_INLINE void transform16(Vector *r, const Residue *roots, const Reducer &by) {
  const Factor fourth = spread(roots[4]);
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) transform4(r[n], r[n + 4], r[n + 8], r[n + 12], fourth, by.prime);
#pragma GCC unroll 3
  for (int k = 1; k < 4; ++k) {
#pragma GCC unroll 3
    for (int n = 1; n < 4; ++n) r[4 * k + n] = product(r[4 * k + n], spread(roots[n * k]), by.prime);
  }
  constexpr int kReduced = kElements == Elements::kAny ? 4 : 3;
#pragma GCC unroll 4
  for (int n = 0; n < kReduced; ++n) r[n] = reduce(r[n], by);
  if (kElements == Elements::kAny) {
#pragma GCC unroll 3
    for (int k = 1; k < 4; ++k) r[4 * k] = reduce(r[4 * k], by);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) transform4(r[4 * k], r[4 * k + 1], r[4 * k + 2], r[4 * k + 3], fourth, by.prime);
}

constexpr int place(int k) { return 4 * (k % 4) + k / 4; }

// Element kResidue of transform4.
template <int kResidue>
KVANT_INLINE Vector quarter(Vector a, Vector b, Vector c, Vector d, const Factor &fourth, Vector prime) {
  if (kResidue == 0) return add16(add16(a, c), add16(b, d));
  if (kResidue == 2) return sub16(add16(a, c), add16(b, d));
  const Vector t = sub16(a, c), v = product(sub16(b, d), fourth, prime);
  return kResidue == 1 ? add16(t, v) : sub16(t, v);
}

// The elements kResidue, kResidue + 4, ... of a transform of order 16, not reduced: of pixels, or of weights, which are all
// multiplied by the factor that `twists` have. `quartered` in transform_fields.h follows it.
template <int kResidue, bool kWeights>
KVANT_INLINE void quarter16(const Vector *from, Vector *r, const Residue *roots, const Residue *twists, Vector prime) {
  const Factor fourth = spread(roots[4]);
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) {
    r[n] = quarter<kResidue>(from[n], from[n + 4], from[n + 8], from[n + 12], fourth, prime);
    if (kWeights || n * kResidue > 0) r[n] = product(r[n], spread(twists[n * kResidue]), prime);
  }
  transform4(r[0], r[1], r[2], r[3], fourth, prime);
}

// Rows of a tile; out[row][frequency across].
template <int kResidue>
[[gnu::noinline]] void forward_rows(const transform::Forward &job, const Reducer &by, Vector *out) {
  const uint8_t *x = job.x;
  for (int64_t y = 0; y < kSize; ++y, x += job.row) {
    Vector r[kSize], found[kAcross];
#pragma GCC unroll 16
    for (int k = 0; k < kSize; ++k) r[k] = widen(x + k * job.column);
    quarter16<kResidue, false>(r, found, job.modulus->forward, job.modulus->forward, by.prime);
#pragma GCC unroll 4
    for (int k = 0; k < kAcross; ++k) *out++ = reduce(found[k], by);
  }
}

[[gnu::noinline]] void forward_columns(const Vector *rows, const Residue *roots, const Reducer &by, int16_t *points,
                                       int64_t stride) {
  for (int64_t x = 0; x < kAcross; ++x) {
    Vector r[kSize];
#pragma GCC unroll 16
    for (int k = 0; k < kSize; ++k) r[k] = rows[k * kAcross + x];
    transform16<Elements::kAny>(r, roots, by);
#pragma GCC unroll 16
    for (int k = 0; k < kSize; ++k, points += stride) store(points, reduce(r[place(k)], by));
  }
}

Reducer reducer(const Modulus &modulus) { return {set16(modulus.prime), set16(modulus.nearest)}; }

void forward(const transform::Forward &job) {
  constexpr void (*function[])(const transform::Forward &, const Reducer &, Vector *) = {
      forward_rows<0>, forward_rows<1>, forward_rows<2>, forward_rows<3>};
  Vector rows[kSize * kAcross];
  const Reducer by = reducer(*job.modulus);
  function[job.residue](job, by, rows);
  forward_columns(rows, job.modulus->forward, by, job.points, job.stride);
}

// Rows of a kernel: kMost at most, of as many weights. The others of a tile are zero, so that the compiler leaves their
// operations out.
template <int kResidue, int kMost>
[[gnu::noinline]] void kernel_rows(const transform::Kernels &job, const int8_t *weights, const Reducer &by, Vector *out) {
  for (int64_t y = 0; y < kMost; ++y) {
    Vector r[kSize], found[4] = {};
#pragma GCC unroll 16
    for (int k = 0; k < kSize; ++k) r[k] = k < kMost && k < job.kernel[1] ? widen(weights + k * kLanes) : zero();
    // The next pair's, which the cache prefetches too late: 49 lines at 7 x 7 are read in a few hundred cycles.
    for (int64_t k = 0; k < job.kernel[1] * kLanes; k += 64) {
      __builtin_prefetch(weights + 2 * job.kernel[0] * job.kernel[1] * kLanes + k);
    }
    if (y < job.kernel[0]) quarter16<kResidue, true>(r, found, job.modulus->backward, job.modulus->weights, by.prime);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) *out++ = reduce(found[k], by);
    if (y + 1 < job.kernel[0]) weights += job.kernel[1] * kLanes;
  }
}

// A column of a kernel's rows.
template <int kMost>
KVANT_INLINE void kernel_column(const Vector *rows, const Residue *roots, const Reducer &by, Vector *out) {
  Vector r[kSize];
#pragma GCC unroll 16
  for (int k = 0; k < kSize; ++k) r[k] = k < kMost ? rows[4 * k] : zero();
  transform16<(kMost <= kSize / 2 ? Elements::kHalf : Elements::kAny)>(r, roots, by);
#pragma GCC unroll 16
  for (int k = 0; k < kSize; ++k) out[k] = reduce(r[place(k)], by);
}

template <int kMost>
[[gnu::noinline]] void kernel_columns(const transform::Kernels &job, const Vector (&rows)[2][4 * kMost],
                                      const Reducer &by) {
  int16_t *points = job.points;
  for (int64_t x = 0; x < 4; ++x) {
    Vector first[kSize], second[kSize];
    kernel_column<kMost>(rows[0] + x, job.modulus->backward, by, first);
    kernel_column<kMost>(rows[1] + x, job.modulus->backward, by, second);
    for (int k = 0; k < kSize; ++k, points += job.stride) {
      store(points, join_low(first[k], second[k]));
      store(points + kLanes, join_high(first[k], second[k]));
    }
  }
}

template <int kMost>
void forward_kernels_within(const transform::Kernels &job) {
  constexpr void (*function[])(const transform::Kernels &, const int8_t *, const Reducer &, Vector *) = {
      kernel_rows<0, kMost>, kernel_rows<1, kMost>, kernel_rows<2, kMost>, kernel_rows<3, kMost>};
  Vector rows[2][4 * kMost];
  const Reducer by = reducer(*job.modulus);
  for (int64_t side = 0; side < 2; ++side) {
    function[job.residue](job, job.weights + side * job.kernel[0] * job.kernel[1] * kLanes, by, rows[side]);
  }
  kernel_columns<kMost>(job, rows, by);
}

void forward_kernels(const transform::Kernels &job) {
  constexpr int kHalf = kSize / 2;
  if (job.kernel[0] <= kHalf && job.kernel[1] <= kHalf) return forward_kernels_within<kHalf>(job);
  forward_kernels_within<transform::kMostKernel>(job);
}

// Montgomery's reduction of 32-bit sums of even and odd outputs: (sum - q p) / 2^16, in the outputs' order.
KVANT_INLINE Vector shrink(Vector even, Vector odd, Vector inverse, Vector prime) {
  const Vector q = low16(join_low(even, odd), inverse);
  return sub16(join_high(even, odd), high16(q, prime));
}

// kAhead cache lines are fetched from `next` on for each pair of channels. Pointers to every third tile leave the
// addresses of all tiles to the instructions that load.
template <int kRows, int kAhead>
[[gnu::noinline]] void tile_rows(const transform::Products &job, const int16_t *tiles, int16_t *sums, const int16_t *next) {
  const Vector inverse = set16(job.modulus->inverse), prime = set16(job.modulus->prime);
  const int16_t *weights = job.weights;
  const int16_t *from[] = {tiles, tiles + 3 * job.stride, tiles + 6 * job.stride, tiles + 9 * job.stride};
  Vector acc[kRows][2];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    __builtin_prefetch(sums + i * job.sum_stride, 1);
    acc[i][0] = acc[i][1] = zero();
  }
  int64_t pair = 0;
  for (int64_t segment = 0; segment < job.segments; ++segment) {
    if (segment > 0) {  // sum / 2^16 * (2^16 mod p): within 2^15 p / 2
      const Vector even = set_pairs(job.modulus->wrap, 0), odd = set_pairs(0, job.modulus->wrap);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vector small = shrink(acc[i][0], acc[i][1], inverse, prime);
        acc[i][0] = multiply_pairs(small, even);
        acc[i][1] = multiply_pairs(small, odd);
      }
    }
    for (const int64_t end = job.pairs * (segment + 1) / job.segments; pair < end; ++pair, weights += 2 * kLanes) {
      const Vector even = load(weights), odd = load(weights + kLanes);
#pragma GCC unroll 2
      for (int i = 0; i < kAhead; ++i, next += kLine) __builtin_prefetch(next, 0, 2);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vector row = set_pair(from[i / 3] + i % 3 * job.stride + 2 * pair);
        acc[i][0] = multiply_add(acc[i][0], row, even);
        acc[i][1] = multiply_add(acc[i][1], row, odd);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) store(sums + i * job.sum_stride, shrink(acc[i][0], acc[i][1], inverse, prime));
}

template <int kAhead, int kRows = 1>
void some_rows(int64_t rows, const transform::Products &job, const int16_t *tiles, int16_t *sums, const int16_t *next) {
  if constexpr (kRows < kMostRows) {
    if (rows > kRows) return some_rows<kAhead, kRows + 1>(rows, job, tiles, sums, next);
  }
  tile_rows<kRows, kAhead>(job, tiles, sums, next);
}

// All tiles, in stretches of nearly the same number. The next weights are fetched meanwhile: all of them during a single
// stretch, else a line for each pair in each of the first.
void multiply(const transform::Products &job) {
  constexpr int kLines = 2 * kLanes / kLine;
  const int64_t parts = (job.count + kMostRows - 1) / kMostRows;
  if (parts == 1) return some_rows<kLines>(job.count, job, job.tiles, job.sums, job.next_weights);
  for (int64_t tile = 0, i = 0; i < parts; ++i) {
    const int64_t end = job.count * (i + 1) / parts;
    const int16_t *next = i < kLines ? job.next_weights + i * job.pairs * kLine : job.weights;
    some_rows<1>(end - tile, job, job.tiles + tile * job.stride, job.sums + tile * job.sum_stride, next);
    tile = end;
  }
}

constexpr int64_t kQuarter = transform::kMostTile * kAcross * kLanes;  // of a tile's halves: those of a part

void backward_columns(const transform::Columns &job) {
  const Reducer by = reducer(*job.modulus);
  const int16_t *sums = job.sums;
  for (int64_t x = 0; x < kAcross; ++x) {
    for (int64_t k = 0; k < kQuarter / kLine; k += kAcross) __builtin_prefetch(job.next + (k + x) * kLine, 1);
    Vector r[kSize];
#pragma GCC unroll 16
    for (int k = 0; k < kSize; ++k, sums += job.stride) r[k] = reduce(load(sums), by);
    transform16<Elements::kAny>(r, job.modulus->backward, by);
    int16_t *to = job.halves + x * kLanes;
#pragma GCC unroll 16
    for (int k = 0; k < transform::kMostTile; ++k, to += kAcross * kLanes) {
      if (k < job.rows) store(to, reduce(r[place(k)], by));
    }
  }
}

[[gnu::noinline]] void backward_row(const int16_t *half, int64_t columns, const Residue *roots, const Reducer &by,
                                    Vector *out) {
  Vector r[kSize];
#pragma GCC unroll 16
  for (int k = 0; k < kSize; ++k) r[k] = load(half + k % kAcross * kQuarter + k / kAcross * kLanes);
  for (int64_t k = 0; k < kAcross; ++k) {
    for (int64_t line = 0; line < kAcross; ++line) __builtin_prefetch(half + k * kQuarter + (2 * kAcross + line) * kLanes);
  }
  transform16<Elements::kAny>(r, roots, by);
#pragma GCC unroll 16
  for (int k = 0; k < transform::kMostTile; ++k) {
    if (k < columns) out[k] = reduce(r[place(k)], by);
  }
}

// Half of the lanes: even or odd outputs.
struct Half {
  Vector bias, low, high;
  Floats multipliers;
};

struct Ending {
  Reducer second;
  Factor first_inverse;
  Vector pair;   // 1, first prime
  Vector whole;  // both primes' product
  Floats low, high;
  Vector zero_point;
};

KVANT_INLINE Half half(const transform::Settling &settling, int64_t first) {
  return {load32(settling.bias + first), load32(settling.low + first), load32(settling.high + first),
          load_floats(settling.multipliers + first)};
}

Ending ending(const transform::Rows &job) {
  const int32_t first = job.moduli[0].prime, second = job.moduli[1].prime;
  return {reducer(job.moduli[1]),
          spread(job.first_inverse),
          set_pairs(1, job.moduli[0].prime),
          set32(first * second),
          set_float(static_cast<float>(job.target.low - job.target.zero_point)),
          set_float(static_cast<float>(job.target.high - job.target.zero_point)),
          set32(job.target.zero_point)};
}

// The sum that is `residues`' first modulo the first prime and differs from it by the second times that prime, brought
// within the bounds that the true one keeps; then the result.
KVANT_INLINE Vector settle(Vector residues, const Half &half, const Ending &ending) {
  Vector sum = multiply_pairs(residues, ending.pair);
  sum = lower_above(sum, half.high, ending.whole);
  sum = raise_below(sum, half.low, ending.whole);
  const Floats value = scale(add32(sum, half.bias), half.multipliers);
  return add32(round(clamp(value, ending.low, ending.high)), ending.zero_point);
}

template <typename Element>
void backward_pixels(const transform::Rows &job, const Vector *first, const Vector *second, const Ending &ending,
                     Element *y) {
  const Half even = half(*job.settling, 0), odd = half(*job.settling, kLanes / 2);
  for (int64_t x = 0; x < job.columns; ++x, y += job.column) {
    const Vector difference = product(sub16(second[x], first[x]), ending.first_inverse, ending.second.prime);
    const Vector times = reduce(difference, ending.second);
    const Vector evens = settle(join_low(first[x], times), even, ending);
    const Vector odds = settle(join_high(first[x], times), odd, ending);
    store_results(y, join_low(evens, odds), job.outputs);
  }
}

void backward_rows(const transform::Rows &job) {
  const Ending end = ending(job);
  const Reducer by[kPrimes] = {reducer(job.moduli[0]), reducer(job.moduli[1])};
  for (int64_t y = 0; y < job.rows; ++y) {
    Vector residues[kPrimes][transform::kMostTile];
    for (int64_t i = 0; i < kPrimes; ++i) {
      const int16_t *half = job.halves + i * transform::kResidues * kQuarter + y * kAcross * kLanes;
      backward_row(half, job.columns, job.moduli[i].backward, by[i], residues[i]);
    }
    if (job.target.dtype == KVANT_UINT8) {
      backward_pixels(job, residues[0], residues[1], end, job.y + y * job.row);
    } else {
      backward_pixels(job, residues[0], residues[1], end, reinterpret_cast<int16_t *>(job.y) + y * job.row);
    }
  }
}

}  // namespace

extern const transform::Transforms kTransforms;
const transform::Transforms kTransforms = {
    kLanes, forward, forward_kernels, multiply, backward_columns, backward_rows,
};

}  // namespace KVANT_ISA
}  // namespace kvant
