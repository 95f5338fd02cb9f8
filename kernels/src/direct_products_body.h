// Sums of products of a tile of pixels times vectors of outputs: the inner loops of direct_body.h, which includes this and
// says what is defined before. Nothing here may call an inline function of a header either.
namespace kvant {
namespace KVANT_ISA {
namespace {

constexpr int64_t kVectorBytes = kLanes * 4;
constexpr int64_t kNear = 1 << 14;  // bytes of weights that stay in the first-level cache: to fetch them only takes time

// Weights of the block, and what is fetched into the second-level cache meanwhile: a line, or none, for each group.
struct Stream {
  const uint8_t *weights, *next;
  int64_t step;

  template <int64_t V>
  void skip(int64_t groups) {
    weights += groups * V * kVectorBytes;
    next += groups * step;
  }
};

template <int64_t V>
inline void fetch_ahead(const uint8_t *weights, const uint8_t *next) {
#pragma GCC unroll 4
  for (int64_t b = 0; b < V * kVectorBytes; b += 64) __builtin_prefetch(weights + kAhead + b);
  __builtin_prefetch(next, 0, 2);
}

// One of the groups that lie together in a register of each pixel, and those behind it.
template <typename Product, int64_t kGroup, int64_t P, int64_t V>
__attribute__((always_inline)) inline void accumulate_from(Vector (&sums)[P][V], const Vector (&pixels)[P], const uint8_t *w) {
  if constexpr (kGroup < Product::kTogether) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) {
      const Vector column = load(w + (kGroup * V + v) * kVectorBytes);
#pragma GCC unroll 16
      for (int64_t p = 0; p < P; ++p) sums[p][v] = Product::template add_one<kGroup>(sums[p][v], pixels[p], column);
    }
    accumulate_from<Product, kGroup + 1>(sums, pixels, w);
  }
}

// Whole registers of pixels, of which a product takes one group where it lies: fewer loads. Moves pixels and weights forward;
// returns how many groups are left.
template <typename Product, int64_t P, int64_t V>
__attribute__((always_inline)) inline int64_t accumulate_together(Vector (&sums)[P][V], const uint8_t *(&x)[P], int64_t groups,
                                                                  Stream *stream) {
  constexpr int64_t kTogether = Product::kTogether;
  Stream now = *stream;
  for (; groups >= kTogether; groups -= kTogether) {
    Vector pixels[P];
#pragma GCC unroll 16
    for (int64_t p = 0; p < P; ++p) {
      pixels[p] = Product::together(x[p]);
      x[p] += kTogether * kGroupBytes;
    }
#pragma GCC unroll 4
    for (int64_t g = 0; g < kTogether; ++g) fetch_ahead<V>(now.weights + g * V * kVectorBytes, now.next + g * now.step);
    accumulate_from<Product, 0>(sums, pixels, now.weights);
    now.skip<V>(kTogether);
  }
  *stream = now;
  return groups;
}

// Adds one run of P pixels times V vectors of outputs and moves the weights forward.
template <typename Product, int64_t P, int64_t V>
__attribute__((always_inline)) inline void accumulate(Vector (&sums)[P][V], const uint8_t *const *pixels,
                                                      int64_t offset, int64_t groups, Stream *stream) {
  const uint8_t *x[P];
#pragma GCC unroll 16
  for (int64_t p = 0; p < P; ++p) x[p] = pixels[p] + offset;
  if constexpr (Product::kTogether > 1) groups = accumulate_together<Product>(sums, x, groups, stream);
  const uint8_t *w = stream->weights, *next = stream->next;
  for (int64_t g = 0; g < groups * kGroupBytes; g += kGroupBytes, w += V * kVectorBytes) {
    Vector columns[V];
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) columns[v] = load(w + v * kVectorBytes);
    if (kAhead > 0) {
      fetch_ahead<V>(w, next);
      next += stream->step;
    }
#pragma GCC unroll 16
    for (int64_t p = 0; p < P; ++p) {
      const Vector pixel = broadcast(x[p] + g);
#pragma GCC unroll 4
      for (int64_t v = 0; v < V; ++v) sums[p][v] = Product::add(sums[p][v], pixel, columns[v]);
    }
  }
  stream->weights = w;
  stream->next = next;
}

// Distances between pixels side by side. With those of odd numbers in registers, every one is an address that the processor
// computes while it loads: a tile takes half as many registers as with a pointer to each pixel.
template <int64_t P>
struct Steps {
  int64_t odd[(P + 1) / 2];

  explicit Steps(int64_t step) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < (P + 1) / 2; ++i) odd[i] = (2 * i + 1) * step;
  }

  __attribute__((always_inline)) int64_t of(int64_t pixel) const {
    if (pixel == 0) return 0;
    const int twos = __builtin_ctzll(static_cast<uint64_t>(pixel));
    return odd[pixel >> twos >> 1] << twos;
  }
};

// The same address, of which the compiler knows nothing: it would keep what it has read from there, and the sums of parts of
// addresses, for later, and has no registers for them.
template <typename T>
__attribute__((always_inline)) inline const T *fresh(const T *address) {
  __asm__ volatile("" : "+r"(address));
  return address;
}

// What the first pixel of either half of a tile sees. Two pointers: so all other pixels need two distances only.
struct Seen {
  const uint8_t *first, *second;

  Seen after(int64_t bytes) const { return {first + bytes, second + bytes}; }
};

// Adds a run of P pixels side by side, until the first one sees `end`; returns what they see then.
template <typename Product, bool kFetches, int64_t P, int64_t V>
__attribute__((always_inline)) inline Seen accumulate_row(Vector (&sums)[P][V], Seen x, const Steps<P / 2> &steps,
                                                          const uint8_t *end, Stream *stream) {
  if constexpr (Product::kTogether > 1) {
    const uint8_t *pixels[P];
#pragma GCC unroll 16
    for (int64_t p = 0; p < P; ++p) pixels[p] = p < P / 2 ? x.first + steps.of(p) : x.second + steps.of(p - P / 2);
    accumulate<Product>(sums, pixels, 0, (end - x.first) / kGroupBytes, stream);
    return x.after(end - x.first);
  }
  const uint8_t *w = stream->weights, *next = stream->next, *first = x.first, *second = fresh(x.second);
  for (; first != end; first += kGroupBytes, second += kGroupBytes, w += V * kVectorBytes) {
    Vector columns[V];
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) columns[v] = load(w + v * kVectorBytes);
    if (kFetches) {
      fetch_ahead<V>(w, next);
      next += stream->step;
    }
#pragma GCC unroll 16
    for (int64_t p = 0; p < P; ++p) {
      const Vector pixel = broadcast(p < P / 2 ? first + steps.of(p) : second + steps.of(p - P / 2));
#pragma GCC unroll 4
      for (int64_t v = 0; v < V; ++v) sums[p][v] = Product::add(sums[p][v], pixel, columns[v]);
    }
  }
  stream->weights = w;
  stream->next = next;
  return {first, second};
}

// `tile` is the number of the tile among those of its work item: each fetches its share of what comes next.
inline Stream stream_of(const DirectWork &work, int64_t tile) {
  if (work.next == nullptr) return {work.weights, work.weights, 0};
  const int64_t share = work.runs * work.groups * 64;
  const bool fetches = tile * share < work.next_bytes;
  return {work.weights, fetches ? work.next + tile * share : work.weights, fetches ? 64 : 0};
}

// Where tiles do not fetch what comes next themselves: a share of its lines before each of them.
class Fetch {
 public:
  Fetch(const DirectWork &work, int64_t tiles) {
    if (kAhead > 0 || work.next == nullptr) return;
    next_ = work.next;
    left_ = work.next_bytes / 64;
    share_ = left_ / tiles + 1;
  }

  void some() {
    if (kAhead > 0) return;
    for (int64_t i = 0; i < share_ && left_ > 0; ++i, --left_, next_ += 64) __builtin_prefetch(next_, 0, 2);
  }

 private:
  const uint8_t *next_ = nullptr;
  int64_t left_ = 0, share_ = 0;
};

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
