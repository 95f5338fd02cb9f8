// Depthwise convolution for x86 with AVX-512 (F, BW, DQ, VL) and VNNI.
#include <immintrin.h>

#include "depthwise.h"

#define KVANT_ISA avx512vnni

namespace kvant {
namespace avx512vnni {
namespace {

constexpr int64_t kLanes = 16;
constexpr float kLargest = 2147483520.0f;  // below 2^31
using Vector = __m512i;
using Floats = __m512;

inline Vector load_vector(const void *from) { return _mm512_loadu_si512(from); }
inline Floats to_float(Vector sums) { return _mm512_cvtepi32_ps(sums); }

inline Vector to_upper_half(Vector lower) { return _mm512_slli_epi32(lower, 16); }

// Interleaving works within 128 bits.
int64_t lane_channel(int64_t vectors, int64_t vector, int64_t lane) {
  return lane / 4 * 4 * vectors + 4 * vector + lane % 4;
}

// Requantizes V vectors of one pixel. What lies below every bound becomes the least integer of int32 and then, by
// saturation, of int16: only what is too large for int32 needs care before the conversion.
template <int64_t V>
class Settled {
 public:
  explicit Settled(const DepthwiseWork &work) : bytes_(work.target->dtype == KVANT_UINT8), bounded_(work.bounded), channels_(work.channels) {
    const kvant_target &target = *work.target;
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) multipliers_[v] = _mm512_loadu_ps(work.multipliers + v * kLanes);
    zero_ = _mm512_set1_epi16(static_cast<int16_t>(target.zero_point));
    low_ = _mm512_set1_epi16(static_cast<int16_t>(target.low));
    high_ = _mm512_set1_epi16(static_cast<int16_t>(target.high));
  }

 protected:
  // Vectors v and v + 1 as int16, in the order of channels within 128 bits.
  Vector settle(const Floats (&values)[V], int64_t v) const {
    Floats first = _mm512_mul_ps(values[v], multipliers_[v]), second = _mm512_mul_ps(values[v + 1], multipliers_[v + 1]);
    if (!bounded_) {
      first = _mm512_min_ps(first, _mm512_set1_ps(kLargest));
      second = _mm512_min_ps(second, _mm512_set1_ps(kLargest));
    }
    const Vector shorts = _mm512_packs_epi32(_mm512_cvtps_epi32(first), _mm512_cvtps_epi32(second));
    return _mm512_min_epi16(_mm512_max_epi16(_mm512_adds_epi16(shorts, zero_), low_), high_);
  }

  static void store_shorts(Vector result, int64_t channels, uint8_t *y) {
    if (channels >= 32) return _mm512_storeu_si512(y, result);
    if (channels > 0) _mm512_mask_storeu_epi16(y, (__mmask32{1} << channels) - 1, result);
  }

  bool bytes_, bounded_;
  int64_t channels_;
  Floats multipliers_[V];
  Vector zero_, low_, high_;
};

struct Bytes {
  static constexpr int64_t kTaps = 4;

  static inline Vector load(const uint8_t *x) { return _mm512_loadu_si512(x); }
  static inline Vector splat(int32_t value) { return _mm512_set1_epi8(static_cast<int8_t>(value)); }
  static inline void interleave(Vector (&taps)[4]) {
    const Vector low01 = _mm512_unpacklo_epi8(taps[0], taps[1]), high01 = _mm512_unpackhi_epi8(taps[0], taps[1]);
    const Vector low23 = _mm512_unpacklo_epi8(taps[2], taps[3]), high23 = _mm512_unpackhi_epi8(taps[2], taps[3]);
    taps[0] = _mm512_unpacklo_epi16(low01, low23);
    taps[1] = _mm512_unpackhi_epi16(low01, low23);
    taps[2] = _mm512_unpacklo_epi16(high01, high23);
    taps[3] = _mm512_unpackhi_epi16(high01, high23);
  }
  // The compiler spills accumulators around the intrinsics (GCC 12); it does not around one instruction of its own.
  static inline Vector add(Vector sum, Vector taps, Vector weights) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(taps), "v"(weights));
    return sum;
  }

  class Finish : public Settled<4> {
   public:
    using Settled<4>::Settled;

    void store(const Floats (&values)[4], uint8_t *y) const {
      const Vector first = settle(values, 0), second = settle(values, 2);
      if (!bytes_) {
        const Vector low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        store_shorts(_mm512_permutex2var_epi64(first, low, second), channels_, y);
        return store_shorts(_mm512_permutex2var_epi64(first, high, second), channels_ - 32, y + 64);
      }
      const Vector result = _mm512_packus_epi16(first, second);
      if (channels_ == 64) return _mm512_storeu_si512(y, result);
      _mm512_mask_storeu_epi8(y, (__mmask64{1} << channels_) - 1, result);
    }
  };
};

struct Shorts {
  static constexpr int64_t kTaps = 2;

  static inline Vector load(const uint8_t *x) { return _mm512_loadu_si512(x); }
  static inline Vector splat(int32_t value) { return _mm512_set1_epi16(static_cast<int16_t>(value)); }
  static inline void interleave(Vector (&taps)[2]) {
    const Vector low = _mm512_unpacklo_epi16(taps[0], taps[1]);
    taps[1] = _mm512_unpackhi_epi16(taps[0], taps[1]);
    taps[0] = low;
  }
  static inline Vector add(Vector sum, Vector taps, Vector weights) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(taps), "v"(weights));
    return sum;
  }

  class Finish : public Settled<2> {
   public:
    using Settled<2>::Settled;

    void store(const Floats (&values)[2], uint8_t *y) const {
      const Vector result = settle(values, 0);
      if (!bytes_) return store_shorts(result, channels_, y);
      const Vector bytes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6), _mm512_packus_epi16(result, result));
      const __m256i narrow = _mm512_castsi512_si256(bytes);
      if (channels_ == 32) return _mm256_storeu_si256(reinterpret_cast<__m256i *>(y), narrow);
      _mm256_mask_storeu_epi8(y, (__mmask32{1} << channels_) - 1, narrow);
    }
  };
};

struct ShortsOfUint8 : Shorts {
  static inline Vector load(const uint8_t *x) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x)));
  }
};

}  // namespace
}  // namespace avx512vnni
}  // namespace kvant

#include "depthwise_body.h"

namespace kvant {
namespace avx512vnni {
extern const DepthwiseLoops kDepthwiseLoops;
const DepthwiseLoops kDepthwiseLoops = {
    kLanes,
    lane_channel,
    {depthwise<Bytes>, {slide_by_1<Bytes>, slide_by_2<Bytes>}},
    {depthwise<ShortsOfUint8>, {slide_pairs<ShortsOfUint8>, slide_by_2<ShortsOfUint8>}},
    {depthwise<Shorts>, {slide_pairs<Shorts>, slide_by_2<Shorts>}},
};

}  // namespace avx512vnni
}  // namespace kvant
