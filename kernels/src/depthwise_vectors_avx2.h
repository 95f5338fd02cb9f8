// Vectors of 256 bits for depthwise convolution: what AVX2 and AVX-VNNI have in common. Included by the source file of an
// instruction set, which defines KVANT_ISA.
#pragma once

#include <immintrin.h>

#include "depthwise.h"
#include "dot_vectors_avx2.h"

namespace kvant {
namespace KVANT_ISA {
namespace {

constexpr int64_t kLanes = 8;
constexpr float kLargest = 2147483520.0f;  // below 2^31
using Vector = __m256i;
using Floats = __m256;

inline Vector load_vector(const void *from) { return _mm256_loadu_si256(static_cast<const __m256i *>(from)); }
inline Floats to_float(Vector sums) { return _mm256_cvtepi32_ps(sums); }

inline Vector to_upper_half(Vector lower) { return _mm256_slli_epi32(lower, 16); }

// Interleaving works within 128 bits.
int64_t lane_channel(int64_t vectors, int64_t vector, int64_t lane) {
  return lane / 4 * 4 * vectors + 4 * vector + lane % 4;
}

struct Shorts {
  static constexpr int64_t kTaps = 2;

  static inline Vector load(const uint8_t *x) { return load_vector(x); }
  static inline Vector splat(int32_t value) { return _mm256_set1_epi16(static_cast<int16_t>(value)); }
  static inline void interleave(Vector (&taps)[2]) {
    const Vector low = _mm256_unpacklo_epi16(taps[0], taps[1]);
    taps[1] = _mm256_unpackhi_epi16(taps[0], taps[1]);
    taps[0] = low;
  }
  static inline Vector add(Vector sum, Vector taps, Vector weights) {
    return dot_shorts(sum, taps, weights);
  }

  // What lies below every bound becomes the least integer of int32 and then, by saturation, of int16: only what is too
  // large for int32 needs care before the conversion.
  class Finish {
   public:
    explicit Finish(const DepthwiseWork &work) : bytes_(work.target->dtype == KVANT_UINT8), bounded_(work.bounded), channels_(work.channels) {
      const kvant_target &target = *work.target;
      for (int64_t v = 0; v < 2; ++v) multipliers_[v] = _mm256_loadu_ps(work.multipliers + v * kLanes);
      zero_ = _mm256_set1_epi16(static_cast<int16_t>(target.zero_point));
      low_ = _mm256_set1_epi16(static_cast<int16_t>(target.low));
      high_ = _mm256_set1_epi16(static_cast<int16_t>(target.high));
    }

    void store(const Floats (&values)[2], uint8_t *y) const {
      const Vector packed = _mm256_packs_epi32(settle(values[0], multipliers_[0]), settle(values[1], multipliers_[1]));
      const Vector shorts = _mm256_min_epi16(_mm256_max_epi16(_mm256_adds_epi16(packed, zero_), low_), high_);
      if (!bytes_) return store_shorts(shorts, y);
      const Vector bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(shorts, shorts), 0xd8);
      store_bytes(_mm256_castsi256_si128(bytes), y);
    }

   private:
    Vector settle(Floats values, Floats multipliers) const {
      Floats products = _mm256_mul_ps(values, multipliers);
      if (!bounded_) products = _mm256_min_ps(products, _mm256_set1_ps(kLargest));
      return _mm256_cvtps_epi32(products);
    }

    void store_bytes(__m128i bytes, uint8_t *y) const {
      if (channels_ == 16) return _mm_storeu_si128(reinterpret_cast<__m128i *>(y), bytes);
      uint8_t whole[16];
      _mm_storeu_si128(reinterpret_cast<__m128i *>(whole), bytes);
      __builtin_memcpy(y, whole, static_cast<uint64_t>(channels_));
    }

    void store_shorts(Vector shorts, uint8_t *y) const {
      if (channels_ == 16) return _mm256_storeu_si256(reinterpret_cast<__m256i *>(y), shorts);
      uint8_t whole[32];
      _mm256_storeu_si256(reinterpret_cast<__m256i *>(whole), shorts);
      __builtin_memcpy(y, whole, 2 * static_cast<uint64_t>(channels_));
    }

    bool bytes_, bounded_;
    int64_t channels_;
    Floats multipliers_[2];
    Vector zero_, low_, high_;
  };
};

struct ShortsOfUint8 : Shorts {
  static inline Vector load(const uint8_t *x) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(x)));
  }
};

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
