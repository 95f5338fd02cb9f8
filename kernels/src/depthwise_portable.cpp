// Depthwise convolution for any processor: C++ and the vectors that GCC and Clang have everywhere.
#define KVANT_ISA portable

#include "depthwise.h"
#include "vectors_portable.h"

namespace kvant {
namespace portable {
namespace {

typedef uint8_t Octets __attribute__((vector_size(8)));
typedef uint32_t Words __attribute__((vector_size(16)));

inline Vector load_vector(const void *from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
inline Vector to_upper_half(Vector lower) { return lower << 16; }

// The first vector takes the lower half of each 32 bits, or the first half of its channels.
int64_t lane_channel([[maybe_unused]] int64_t vectors, int64_t vector, int64_t lane) {
#if defined(__aarch64__)
  return vector * kLanes + lane;
#elif __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
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
    Vector whole[2];
    Out by_lane[2 * kLanes], results[2 * kLanes];
    for (int64_t v = 0; v < 2; ++v) {
      whole[v] = __builtin_convertvector(rounded(values[v] * multipliers_[v], low_, high_) + zero_, Vector);
    }
    narrow(whole, by_lane);
    for (int64_t i = 0; i < 2 * kLanes; ++i) results[lane_channel(2, i / kLanes, i % kLanes)] = by_lane[i];
    if (channels_ == 2 * kLanes) {
      __builtin_memcpy(y, results, sizeof results);
    } else {
      __builtin_memcpy(y, results, static_cast<uint64_t>(channels_) * sizeof(Out));
    }
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
  // Element by element the first tap in the lower half, the second in the upper one; with NEON, which multiplies a half of
  // a vector by another, four elements of the first tap and the same ones of the second.
  static inline void interleave(Vector (&taps)[2]) {
#if defined(__aarch64__)
    const int64x2_t first = reinterpret_cast<int64x2_t>(taps[0]), second = reinterpret_cast<int64x2_t>(taps[1]);
    taps[0] = reinterpret_cast<Vector>(vzip1q_s64(first, second));
    taps[1] = reinterpret_cast<Vector>(vzip2q_s64(first, second));
#else
    const Words first = reinterpret_cast<Words>(taps[0]), second = reinterpret_cast<Words>(taps[1]);
    taps[0] = reinterpret_cast<Vector>((first & 0xffffu) | (second << 16));
    taps[1] = reinterpret_cast<Vector>((first >> 16) | (second & 0xffff0000u));
#endif
  }
  static inline Vector add(Vector sum, Vector taps, Vector weights) {
#if defined(__SSE2__)  // part of every x86-64
    return sum + reinterpret_cast<Vector>(__builtin_ia32_pmaddwd128(reinterpret_cast<Halves>(taps),
                                                                    reinterpret_cast<Halves>(weights)));
#elif defined(__aarch64__)
    const int16x8_t both = reinterpret_cast<int16x8_t>(taps), pairs = reinterpret_cast<int16x8_t>(weights);
    const int16x8_t of_first = vuzp1q_s16(pairs, pairs), of_second = vuzp2q_s16(pairs, pairs);
    return reinterpret_cast<Vector>(vmlal_high_s16(
        vmlal_s16(reinterpret_cast<int32x4_t>(sum), vget_low_s16(both), vget_low_s16(of_first)), both, of_second));
#else
    return sum + ((taps << 16) >> 16) * ((weights << 16) >> 16) + (taps >> 16) * (weights >> 16);
#endif
  }
};

struct ShortsOfUint8 : Shorts {
  static inline Vector load(const uint8_t *x) {
#if defined(__aarch64__)  // GCC 12 converts each element alone
    return reinterpret_cast<Vector>(vmovl_u8(vld1_u8(x)));
#else
    Octets octets;
    __builtin_memcpy(&octets, x, sizeof octets);
    return reinterpret_cast<Vector>(__builtin_convertvector(octets, Halves));
#endif
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
