// Vectors of 256 bits for direct convolution: what AVX2 and AVX-VNNI have in common. Included by the source file of an
// instruction set, which defines KVANT_ISA.
#pragma once

#include <immintrin.h>

#include "direct.h"
#include "dot_vectors_avx2.h"

namespace kvant {
namespace KVANT_ISA {
namespace {

constexpr int64_t kLanes = 8;
constexpr int64_t kVectors = 2;
constexpr int64_t kAhead = 0;  // the loop is bound by the number of its instructions
constexpr int64_t kApart = 0;
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
inline Floats floats_of_bytes(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)); }
inline Floats floats_of_shorts(__m128i shorts) { return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(shorts)); }
template <int64_t V>
inline void load_integers(const uint8_t *from, int64_t count, Floats (&values)[V]) {
  const __m128i first = load_some(from, count), second = V == 2 ? load_some(from + kLanes, count - kLanes) : first;
  const __m128i woven = V == 2 ? _mm_shuffle_epi32(_mm_unpacklo_epi64(first, second), 0xd8) : first;
  values[0] = floats_of_bytes(woven);
  if (V == 2) values[V - 1] = floats_of_bytes(_mm_srli_si128(woven, 8));
}
template <int64_t V>
inline void load_integers(const int16_t *from, int64_t count, Floats (&values)[V]) {
  const __m128i first = load_some(from, count), second = V == 2 ? load_some(from + kLanes, count - kLanes) : first;
  values[0] = floats_of_shorts(V == 2 ? _mm_unpacklo_epi64(first, second) : first);
  if (V == 2) values[V - 1] = floats_of_shorts(_mm_unpackhi_epi64(first, second));
}

struct Shorts {
  static constexpr int64_t kTogether = 1;
  static inline Vector add(Vector sum, Vector pixel, Vector weights) {
    return dot_shorts(sum, pixel, weights);
  }
};

// Requantizes V vectors of one pixel. What lies below every bound becomes the least integer of int32 and then, by
// saturation, of int16: only the upper bound needs care before the conversion.
template <int64_t V>
class Finish {
 public:
  static constexpr bool kAdds = false;

  explicit Finish(const DirectWork &work) : bytes_(work.target->dtype == KVANT_UINT8),
        simple_(work.bounded && work.addend == nullptr && work.outputs == V * kLanes),
        all_(work.target->zero_point == 0 && work.target->low == 0 && work.target->high == 255),
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
    const Vector packed = in_order(_mm256_packs_epi32(settle(values[0], multipliers_[0]), second));
    const Vector shorts = _mm256_max_epi16(_mm256_adds_epi16(packed, zero_), low_);
    if (!bytes_) return store_shorts(shorts, y);
    const Vector bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(shorts, shorts), 0xd8);
    store_bytes(_mm256_castsi256_si128(bytes), y);
  }

  // Nothing added, products that fit int32, no lane unused. Saturation brings them near the bounds.
  bool simple_bytes() const { return simple_ && bytes_; }
  bool all_bytes() const { return simple_ && bytes_ && all_; }
  bool simple_shorts() const { return simple_ && !bytes_; }
  void convert(const Vector (&sums)[V], Floats (&values)[V]) const {
    for (int64_t v = 0; v < V; ++v) values[v] = to_float(sums[v]);
  }
  void scale(Floats (&values)[V], const uint8_t *) const {
    for (int64_t v = 0; v < V; ++v) values[v] = values[v] * multipliers_[v];
  }
  void round(const Floats (&values)[V], Vector (&whole)[V]) const {
    for (int64_t v = 0; v < V; ++v) whole[v] = _mm256_cvtps_epi32(values[v]);
  }
  template <Simple kSimple>
  void pack(const Vector (&whole)[V], uint8_t *y) const {
    const Vector words = _mm256_packs_epi32(whole[0], whole[V - 1]);
    if (kSimple == Simple::kAllBytes) return store_whole(bytes_of(words), y);
    const Vector shorts = _mm256_adds_epi16(words, zero_);
    if (kSimple == Simple::kShorts) return store_all_shorts(_mm256_min_epi16(_mm256_max_epi16(shorts, low_), high_shorts_), y);
    store_whole(_mm_min_epu8(_mm_max_epu8(bytes_of(shorts), low_bytes_), high_bytes_), y);
  }

 private:
  // Two vectors are woven, which packing undoes; of one, either half has its 4 outputs.
  static Vector in_order(Vector packed) { return V == 2 ? packed : _mm256_permute4x64_epi64(packed, 0xd8); }

  static __m128i bytes_of(Vector words) {
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    return V == 2 ? bytes : _mm_shuffle_epi32(bytes, 0xd8);
  }

  static void store_whole(__m128i bytes, uint8_t *y) {
    V == 2 ? _mm_storeu_si128(reinterpret_cast<__m128i *>(y), bytes) : _mm_storel_epi64(reinterpret_cast<__m128i *>(y), bytes);
  }

  static void store_all_shorts(Vector packed, uint8_t *y) {
    const Vector shorts = in_order(packed);
    if (V == 2) return _mm256_storeu_si256(reinterpret_cast<__m256i *>(y), shorts);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(y), _mm256_castsi256_si128(shorts));
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

  bool bytes_, simple_, all_;
  int64_t outputs_;
  Floats multipliers_[V];
  Floats high_;
  Vector zero_, low_, high_shorts_;
  __m128i low_bytes_, high_bytes_;
};

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
