// Direct convolution for x86 with AVX-512 (F, BW, DQ, VL) and VNNI.
#include <immintrin.h>

#include "direct.h"

#define KVANT_ISA avx512vnni

namespace kvant {
namespace avx512vnni {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kVectors = 4;
constexpr int64_t kAhead = 2048;  // the second-level cache needs to be told that early
#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t kApart = 2;  // the same code, smaller: sanitizers make the compiler take more than ten minutes for six
#else
constexpr int64_t kApart = 6;
#endif
constexpr float kLargest = 2147483520.0f;  // below 2^31
using Vector = __m512i;
using Floats = __m512;

// Sums, weights and a pixel of a tile fill the registers; more pixels would not leave enough pointers.
template <int64_t V>
struct TilePixels {
  static constexpr int64_t kCount = V == 4 ? 6 : V == 3 ? 8 : V == 2 ? 10 : 12;
};

inline Vector zero() { return _mm512_setzero_si512(); }
inline Vector load(const uint8_t *from) { return _mm512_loadu_si512(from); }
inline Floats load_floats(const float *from) { return _mm512_loadu_ps(from); }
inline void store(int32_t *to, Vector value) { _mm512_storeu_si512(to, value); }
inline Floats to_float(Vector sums) { return _mm512_cvtepi32_ps(sums); }
inline Vector broadcast(const uint8_t *group) {
  int32_t bits;
  __builtin_memcpy(&bits, group, sizeof bits);
  return _mm512_set1_epi32(bits);
}
inline Floats from_wide(const int64_t *sums) {
  const __m256 low = _mm512_cvtepi64_ps(_mm512_loadu_si512(sums));
  const __m256 high = _mm512_cvtepi64_ps(_mm512_loadu_si512(sums + 8));
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

inline Floats splat(float value) { return _mm512_set1_ps(value); }
inline Floats rounded(Floats value, Floats low, Floats high) {
  return _mm512_cvtepi32_ps(_mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(value, low), high)));
}
inline __mmask16 first_lanes(int64_t count) {
  return count >= kLanes ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1 << count) - 1);
}
inline Floats floats_of_bytes(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)); }
inline Floats floats_of_shorts(__m256i shorts) { return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(shorts)); }
inline Floats load_lanes(const uint8_t *from, int64_t count) {
  return floats_of_bytes(_mm_maskz_loadu_epi8(first_lanes(count), from));
}
inline Floats load_lanes(const int16_t *from, int64_t count) {
  return floats_of_shorts(_mm256_maskz_loadu_epi16(first_lanes(count), from));
}
template <int64_t V, typename T>
inline void load_unwoven(const T *from, int64_t count, Floats (&values)[V]) {
#pragma GCC unroll 4
  for (int64_t v = 0; v < V; ++v) values[v] = load_lanes(from + v * kLanes, count - v * kLanes);
}
// Four vectors are woven: each takes the fours of outputs that are four fours apart.
template <int64_t V>
inline void load_integers(const uint8_t *from, int64_t count, Floats (&values)[V]) {
  if (V < 4) return load_unwoven(from, count, values);
  const Vector order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const Vector all = _mm512_permutexvar_epi32(order, _mm512_maskz_loadu_epi8(~__mmask64{0} >> (64 - count), from));
  values[0] = floats_of_bytes(_mm512_castsi512_si128(all));
  values[V > 1 ? 1 : 0] = floats_of_bytes(_mm512_extracti32x4_epi32(all, 1));
  values[V > 2 ? 2 : 0] = floats_of_bytes(_mm512_extracti32x4_epi32(all, 2));
  values[V - 1] = floats_of_bytes(_mm512_extracti32x4_epi32(all, 3));
}
template <int64_t V>
inline void load_integers(const int16_t *from, int64_t count, Floats (&values)[V]) {
  if (V < 4) return load_unwoven(from, count, values);
  const __mmask64 real = ~__mmask64{0} >> (64 - count);
  const Vector low = _mm512_maskz_loadu_epi16(static_cast<__mmask32>(real), from);
  const Vector high = _mm512_maskz_loadu_epi16(static_cast<__mmask32>(real >> 32), from + 32);
#pragma GCC unroll 4
  for (int64_t v = 0; v < V; ++v) {
    const Vector order = _mm512_add_epi64(_mm512_setr_epi64(0, 4, 8, 12, 0, 0, 0, 0), _mm512_set1_epi64(v));
    values[v] = floats_of_shorts(_mm512_castsi512_si256(_mm512_permutex2var_epi64(low, order, high)));
  }
}

// The compiler spills accumulators around the intrinsics (GCC 12); it does not around one instruction of its own.
struct Bytes {
  static constexpr int64_t kTogether = 1;
  static inline Vector add(Vector sum, Vector pixel, Vector weights) {
    __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(pixel), "v"(weights));
    return sum;
  }
};

struct Shorts {
  static constexpr int64_t kTogether = 1;
  static inline Vector add(Vector sum, Vector pixel, Vector weights) {
    __asm__ volatile("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(pixel), "v"(weights));
    return sum;
  }
};

// Requantizes V vectors of one pixel. What lies below every bound becomes the least integer of int32 and then, by
// saturation, of int16: only what is too large for int32 needs care before the conversion.
template <int64_t V>
class Finish {
 public:
  static constexpr bool kAdds = false;

  explicit Finish(const DirectWork &work) : bytes_(work.target->dtype == KVANT_UINT8),
        bounded_(work.bounded),
        simple_(bounded_ && work.addend == nullptr && (bytes_ || work.outputs == V * kLanes)),
        all_(simple_ && bytes_ && work.outputs == V * kLanes && work.target->zero_point == 0 && work.target->low == 0 &&
             work.target->high == 255),
        outputs_(work.outputs) {
    const kvant_target &target = *work.target;
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) multipliers_[v] = load_floats(work.multipliers + v * kLanes);
    zero_ = _mm512_set1_epi16(static_cast<int16_t>(target.zero_point));
    low_ = bytes_ ? _mm512_set1_epi8(static_cast<char>(target.low)) : _mm512_set1_epi16(static_cast<int16_t>(target.low));
    high_ = bytes_ ? _mm512_set1_epi8(static_cast<char>(target.high)) : _mm512_set1_epi16(static_cast<int16_t>(target.high));
  }

  void store(const Floats (&values)[V], uint8_t *y) const {
    bounded_ ? store_as<true>(values, y) : store_as<false>(values, y);
  }

  // Nothing added, products that fit int32; 16-bit integers: no lane unused.
  bool simple_bytes() const { return simple_ && bytes_; }
  bool simple_shorts() const { return simple_ && !bytes_; }
  bool all_bytes() const { return all_; }
  void convert(const Vector (&sums)[V], Floats (&values)[V]) const {
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) values[v] = to_float(sums[v]);
  }
  void scale(Floats (&values)[V], const uint8_t *) const {
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) values[v] = _mm512_mul_ps(values[v], multipliers_[v]);
  }
  void round(const Floats (&values)[V], Vector (&whole)[V]) const {
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) whole[v] = _mm512_cvtps_epi32(values[v]);
  }
  template <Simple kSimple>
  void pack(const Vector (&whole)[V], uint8_t *y) const {
    const Words words = words_of(whole);
    if (kSimple == Simple::kAllBytes) return store_all_bytes(words, y);
    if (kSimple == Simple::kBytes) return store_bytes(words, y);
    store_all_shorts(shorts_of(words), y);
  }

 private:
  // Each 128 bits: four of one vector, four of the next.
  struct Words {
    Vector first, second;
  };

  static Words words_of(const Vector (&whole)[V]) {
    const Vector none = _mm512_setzero_si512();
    return {_mm512_packs_epi32(whole[0], V > 1 ? whole[V > 1 ? 1 : 0] : none),
            V > 2 ? _mm512_packs_epi32(whole[V > 2 ? 2 : 0], V > 3 ? whole[V - 1] : none) : none};
  }

  template <bool kBounded>
  void store_as(const Floats (&values)[V], uint8_t *y) const {
    Vector whole[V];
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) {
      const Floats product = _mm512_mul_ps(values[v], multipliers_[v]);
      whole[v] = _mm512_cvtps_epi32(kBounded ? product : _mm512_min_ps(product, _mm512_set1_ps(kLargest)));
    }
    const Words words = words_of(whole);
    if (bytes_) return store_bytes(words, y);
    const Words shorts = shorts_of(words);
    store_shorts(shorts.first, outputs_, y);
    if (V > 2) store_shorts(shorts.second, outputs_ - 32, y + 64);
  }

  // Four vectors are woven, which packing undoes.
  static Vector in_order(Vector bytes) {
    const Vector order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return V == 4 ? bytes : _mm512_permutexvar_epi32(order, bytes);
  }

  // No lane unused, and saturation is the only bound.
  static void store_all_bytes(Words words, uint8_t *y) {
    const Vector bytes = in_order(_mm512_packus_epi16(words.first, words.second));
    if (V == 4) return _mm512_storeu_si512(y, bytes);
    _mm512_mask_storeu_epi8(y, (__mmask64{1} << (V % 4 * kLanes)) - 1, bytes);
  }

  void store_bytes(Words words, uint8_t *y) const {
    const Vector packed = _mm512_packus_epi16(_mm512_adds_epi16(words.first, zero_), _mm512_adds_epi16(words.second, zero_));
    const Vector result = _mm512_min_epu8(_mm512_max_epu8(in_order(packed), low_), high_);
    if (outputs_ == 64) return _mm512_storeu_si512(y, result);
    _mm512_mask_storeu_epi8(y, (__mmask64{1} << outputs_) - 1, result);
  }

  // In order, with the zero point, within the bounds.
  Words shorts_of(Words words) const {
    const Vector first = bounded_shorts(words.first), second = bounded_shorts(words.second);
    if (V == 4) {
      return {_mm512_permutex2var_epi64(first, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second),
              _mm512_permutex2var_epi64(first, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), second)};
    }
    const Vector order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    return {_mm512_permutexvar_epi64(order, first), _mm512_permutexvar_epi64(order, second)};
  }

  Vector bounded_shorts(Vector words) const {
    return _mm512_min_epi16(_mm512_max_epi16(_mm512_adds_epi16(words, zero_), low_), high_);
  }

  static void store_all_shorts(Words shorts, uint8_t *y) {
    V == 1 ? _mm256_storeu_si256(reinterpret_cast<__m256i *>(y), _mm512_castsi512_si256(shorts.first))
           : _mm512_storeu_si512(y, shorts.first);
    if (V < 3) return;
    V == 3 ? _mm256_storeu_si256(reinterpret_cast<__m256i *>(y + 64), _mm512_castsi512_si256(shorts.second))
           : _mm512_storeu_si512(y + 64, shorts.second);
  }

  static void store_shorts(Vector shorts, int64_t outputs, uint8_t *y) {
    if (outputs >= 32) return _mm512_storeu_si512(y, shorts);
    _mm512_mask_storeu_epi16(y, (__mmask32{1} << outputs) - 1, shorts);
  }

  bool bytes_, bounded_, simple_, all_;
  int64_t outputs_;
  Floats multipliers_[V];
  Vector zero_, low_, high_;
};

}  // namespace
}  // namespace avx512vnni
}  // namespace kvant

#include "direct_body.h"

namespace kvant {
namespace avx512vnni {

extern const DirectLoops kDirectLoops;
const DirectLoops kDirectLoops = {
    kLanes,
    kVectors,
    {TilePixels<1>::kCount, TilePixels<2>::kCount, TilePixels<3>::kCount, TilePixels<4>::kCount},
    true,
    run<Narrow<Bytes>>,
    0,
    run<Narrow<Shorts>>,
    run<Wide>,
};

}  // namespace avx512vnni
}  // namespace kvant
