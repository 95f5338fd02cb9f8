// Vectors of 256 bits for direct convolution: what AVX2 and AVX-VNNI have in common. Included by the source file of an
// instruction set, which defines KVANT_ISA.
#pragma once

#include <immintrin.h>

#include "direct.h"

namespace kvant {
namespace KVANT_ISA {
namespace {

constexpr int64_t kLanes = 8;
constexpr int64_t kVectors = 2;
constexpr int64_t kAhead = 0;  // the loop is bound by the number of its instructions
using Vector = __m256i;
using Floats = __m256;

template <int64_t V>
struct TilePixels {
  static constexpr int64_t kCount = V == 2 ? 6 : 8;
};

inline Vector zero() { return _mm256_setzero_si256(); }
inline Vector load(const uint8_t *from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)); }
inline Floats load_floats(const float *from) { return _mm256_loadu_ps(from); }
inline void store(int32_t *to, Vector value) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), value); }
inline Floats to_float(Vector sums) { return _mm256_cvtepi32_ps(sums); }
inline Vector broadcast(const uint8_t *group) {
  int32_t bits;
  __builtin_memcpy(&bits, group, sizeof bits);
  return _mm256_set1_epi32(bits);
}
inline Floats from_wide(const int64_t *sums) {
  float values[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) values[i] = static_cast<float>(sums[i]);
  return load_floats(values);
}

inline Floats splat(float value) { return _mm256_set1_ps(value); }
inline Floats rounded(Floats value, Floats low, Floats high) {
  return _mm256_cvtepi32_ps(_mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(value, low), high)));
}
template <typename T>
inline __m128i load_some(const T *from, int64_t count) {
  if (count >= kLanes) {
    return sizeof(T) == 1 ? _mm_loadl_epi64(reinterpret_cast<const __m128i *>(from))
                          : _mm_loadu_si128(reinterpret_cast<const __m128i *>(from));
  }
  uint8_t bytes[16] = {};
  if (count > 0) __builtin_memcpy(bytes, from, static_cast<uint64_t>(count) * sizeof(T));
  return _mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes));
}
inline Floats load_integers(const uint8_t *from, int64_t count) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_some(from, count)));
}
inline Floats load_integers(const int16_t *from, int64_t count) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(load_some(from, count)));
}

struct Shorts {
  static inline Vector add(Vector sum, Vector pixel, Vector weights) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pixel, weights));
  }
};

// Requantizes V vectors of one pixel. What lies below every bound becomes the least integer of int32 and then, by
// saturation, of int16: only the upper bound needs care before the conversion.
template <int64_t V>
class Finish {
 public:
  explicit Finish(const DirectWork &work) : bytes_(work.target->dtype == KVANT_UINT8),
        simple_(work.bounded && work.addend == nullptr && work.outputs == V * kLanes),
        outputs_(work.outputs) {
    const kvant_target &target = *work.target;
    for (int64_t v = 0; v < V; ++v) multipliers_[v] = load_floats(work.multipliers + v * kLanes);
    high_ = _mm256_set1_ps(static_cast<float>(target.high - target.zero_point));
    zero_ = _mm256_set1_epi16(static_cast<int16_t>(target.zero_point));
    low_ = _mm256_set1_epi16(static_cast<int16_t>(target.low));
    high_shorts_ = _mm256_set1_epi16(static_cast<int16_t>(target.high));
    low_bytes_ = _mm_set1_epi8(static_cast<char>(target.low));
    high_bytes_ = _mm_set1_epi8(static_cast<char>(target.high));
  }

  void store(const Floats (&values)[V], uint8_t *y) const {
    const Vector second = V == 2 ? settle(values[V - 1], multipliers_[V - 1]) : _mm256_setzero_si256();
    const Vector packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(settle(values[0], multipliers_[0]), second), 0xd8);
    const Vector shorts = _mm256_max_epi16(_mm256_adds_epi16(packed, zero_), low_);
    if (!bytes_) return store_shorts(shorts, y);
    const Vector bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(shorts, shorts), 0xd8);
    store_bytes(_mm256_castsi256_si128(bytes), y);
  }

  // Nothing added, products that fit int32, no lane unused. Saturation brings them near the bounds.
  bool simple_bytes() const { return simple_ && bytes_; }
  bool simple_shorts() const { return simple_ && !bytes_; }
  void store_simple_bytes(const Floats (&values)[V], uint8_t *y) const {
    const Vector words = words_of(values);
    const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
    const __m128i mixed = _mm_shuffle_epi32(_mm_packus_epi16(low, high), 0xd8);
    const __m128i bytes = _mm_min_epu8(_mm_max_epu8(mixed, low_bytes_), high_bytes_);
    V == 2 ? _mm_storeu_si128(reinterpret_cast<__m128i *>(y), bytes) : _mm_storel_epi64(reinterpret_cast<__m128i *>(y), bytes);
  }

  void store_simple_shorts(const Floats (&values)[V], uint8_t *y) const {
    const Vector bounded = _mm256_min_epi16(_mm256_max_epi16(words_of(values), low_), high_shorts_);
    const Vector shorts = _mm256_permute4x64_epi64(bounded, 0xd8);
    if (V == 2) return _mm256_storeu_si256(reinterpret_cast<__m256i *>(y), shorts);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(y), _mm256_castsi256_si128(shorts));
  }

 private:
  // 4 of each vector in either half.
  Vector words_of(const Floats (&values)[V]) const {
    const Vector first = _mm256_cvtps_epi32(_mm256_mul_ps(values[0], multipliers_[0]));
    const Vector second = _mm256_cvtps_epi32(_mm256_mul_ps(values[V - 1], multipliers_[V - 1]));
    return _mm256_adds_epi16(_mm256_packs_epi32(first, second), zero_);
  }

  Vector settle(Floats values, Floats multipliers) const {
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(values, multipliers), high_));
  }

  void store_bytes(__m128i bytes, uint8_t *y) const {
    if (outputs_ == 16) return _mm_storeu_si128(reinterpret_cast<__m128i *>(y), bytes);
    uint8_t whole[16];
    _mm_storeu_si128(reinterpret_cast<__m128i *>(whole), bytes);
    __builtin_memcpy(y, whole, static_cast<uint64_t>(outputs_));
  }

  void store_shorts(Vector shorts, uint8_t *y) const {
    if (outputs_ == 16) return _mm256_storeu_si256(reinterpret_cast<__m256i *>(y), shorts);
    uint8_t whole[32];
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(whole), shorts);
    __builtin_memcpy(y, whole, 2 * static_cast<uint64_t>(outputs_));
  }

  bool bytes_, simple_;
  int64_t outputs_;
  Floats multipliers_[V];
  Floats high_;
  Vector zero_, low_, high_shorts_;
  __m128i low_bytes_, high_bytes_;
};

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
