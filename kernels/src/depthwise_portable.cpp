// Depthwise convolution for any processor: C++ and the vectors that GCC and Clang have everywhere.
#include "depthwise.h"

#define KVANT_ISA portable

namespace kvant {
namespace portable {
namespace {

constexpr int64_t kLanes = 4;
typedef uint8_t Octets __attribute__((vector_size(8)));
typedef int16_t Halves __attribute__((vector_size(16)));
typedef int32_t Vector __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));

inline Vector load_vector(const void *from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
inline Vector to_upper_half(Vector lower) { return lower << 16; }
inline Floats to_float(Vector sums) { return __builtin_convertvector(sums, Floats); }

// The first vector takes the lower half of each 32 bits.
int64_t lane_channel(int64_t vectors, int64_t vector, int64_t lane) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  return vectors * lane + vector;
#else
  return vectors * lane + 1 - vector;
#endif
}

class Finish2 {
 public:
  explicit Finish2(const DepthwiseWork &work)
      : bytes_(work.target->dtype == KVANT_UINT8), channels_(work.channels),
        zero_(Floats{} + static_cast<float>(work.target->zero_point)),
        low_(Floats{} + static_cast<float>(work.target->low - work.target->zero_point)),
        high_(Floats{} + static_cast<float>(work.target->high - work.target->zero_point)) {
    __builtin_memcpy(multipliers_, work.multipliers, sizeof multipliers_);
  }

  void store(const Floats (&values)[2], uint8_t *y) const {
    if (bytes_) return store_as<uint8_t>(values, y);
    store_as<int16_t>(values, y);
  }

 private:
  template <typename Out>
  void store_as(const Floats (&values)[2], uint8_t *y) const {
    int32_t settled[2 * kLanes];
    Out results[2 * kLanes];
    for (int64_t v = 0; v < 2; ++v) {
      const Vector whole = settle(values[v] * multipliers_[v]);
      __builtin_memcpy(settled + v * kLanes, &whole, sizeof whole);
    }
    for (int64_t i = 0; i < 2 * kLanes; ++i) results[lane_channel(2, i / kLanes, i % kLanes)] = static_cast<Out>(settled[i]);
    if (channels_ == 2 * kLanes) {
      __builtin_memcpy(y, results, sizeof results);
    } else {
      __builtin_memcpy(y, results, static_cast<uint64_t>(channels_) * sizeof(Out));
    }
  }

  Vector settle(Floats v) const {
    constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds half to even
    v = v < low_ ? low_ : v;
    v = v > high_ ? high_ : v;
    return __builtin_convertvector((v + kRounder) - kRounder + zero_, Vector);
  }

  bool bytes_;
  int64_t channels_;
  Floats zero_, low_, high_;
  Floats multipliers_[2];
};

struct Shorts {
  static constexpr int64_t kTaps = 2;
  using Finish = Finish2;

  static inline Vector load(const uint8_t *x) { return load_vector(x); }
  static inline Vector splat(int32_t value) { return Vector{} + value * 0x10001; }
  // Element by element the first tap in the lower half, the second in the upper one.
  static inline void interleave(Vector (&taps)[2]) {
    const Words first = reinterpret_cast<Words>(taps[0]), second = reinterpret_cast<Words>(taps[1]);
    taps[0] = reinterpret_cast<Vector>((first & 0xffffu) | (second << 16));
    taps[1] = reinterpret_cast<Vector>((first >> 16) | (second & 0xffff0000u));
  }
  static inline Vector add(Vector sum, Vector taps, Vector weights) {
#if defined(__SSE2__)  // part of every x86-64
    return sum + reinterpret_cast<Vector>(__builtin_ia32_pmaddwd128(reinterpret_cast<Halves>(taps),
                                                                    reinterpret_cast<Halves>(weights)));
#else
    return sum + ((taps << 16) >> 16) * ((weights << 16) >> 16) + (taps >> 16) * (weights >> 16);
#endif
  }
};

struct ShortsOfUint8 : Shorts {
  static inline Vector load(const uint8_t *x) {
    Octets octets;
    __builtin_memcpy(&octets, x, sizeof octets);
    return reinterpret_cast<Vector>(__builtin_convertvector(octets, Halves));
  }
};

}  // namespace
}  // namespace portable
}  // namespace kvant

#include "depthwise_body.h"

namespace kvant {
namespace portable {

extern const DepthwiseLoops kDepthwiseLoops;
constexpr DepthwiseLoops kDepthwiseLoops = loops_of_shorts();

}  // namespace portable
}  // namespace kvant
