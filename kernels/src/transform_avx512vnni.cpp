// Number-theoretic transform for x86 with AVX-512 (F, BW, DQ, VL) and VNNI.
#include <immintrin.h>

#include "transform.h"

#define KVANT_ISA avx512vnni

namespace kvant {
namespace avx512vnni {
namespace {

constexpr int64_t kLanes = 32;
constexpr int kMostRows = 12;
using Vector = __m512i;
using Floats = __m512;
constexpr uint32_t kOdd16 = 0xaaaaaaaa;

inline Vector zero() { return _mm512_setzero_si512(); }
inline Vector load(const int16_t *from) { return _mm512_loadu_si512(from); }
inline Vector load32(const int32_t *from) { return _mm512_loadu_si512(from); }
inline Floats load_floats(const float *from) { return _mm512_loadu_ps(from); }
inline void store(int16_t *to, Vector value) { _mm512_storeu_si512(to, value); }
inline Vector widen(const uint8_t *from) {
  return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
}
inline Vector widen(const int8_t *from) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
}

inline Vector set16(int16_t value) { return _mm512_set1_epi16(value); }
inline Vector set32(int32_t value) { return _mm512_set1_epi32(value); }
inline Floats set_float(float value) { return _mm512_set1_ps(value); }
inline Vector set_pairs(int16_t even, int16_t odd) {
  return _mm512_set1_epi32(static_cast<int32_t>(static_cast<uint16_t>(even) | static_cast<uint32_t>(odd) << 16));
}
inline Vector set_pair(const int16_t *pair) {
  int32_t bits;
  __builtin_memcpy(&bits, pair, sizeof bits);
  return _mm512_set1_epi32(bits);
}

inline Vector add16(Vector a, Vector b) { return _mm512_add_epi16(a, b); }
inline Vector sub16(Vector a, Vector b) { return _mm512_sub_epi16(a, b); }
inline Vector add32(Vector a, Vector b) { return _mm512_add_epi32(a, b); }
inline Vector high16(Vector a, Vector b) { return _mm512_mulhi_epi16(a, b); }
inline Vector low16(Vector a, Vector b) { return _mm512_mullo_epi16(a, b); }
// a * b / 2^15, rounded.
inline Vector scaled16(Vector a, Vector b) { return _mm512_mulhrs_epi16(a, b); }

// Lower or upper 16 bits of every 32: of `even` in the even lanes, of `odd` in the odd ones.
inline Vector join_low(Vector even, Vector odd) {
  return _mm512_mask_blend_epi16(kOdd16, even, _mm512_slli_epi32(odd, 16));
}
inline Vector join_high(Vector even, Vector odd) {
  return _mm512_mask_blend_epi16(kOdd16, _mm512_srli_epi32(even, 16), odd);
}

inline Vector multiply_pairs(Vector a, Vector b) { return _mm512_madd_epi16(a, b); }
// The compiler spills accumulators around the intrinsic (GCC 12); it does not around one instruction of its own.
inline Vector multiply_add(Vector sum, Vector a, Vector b) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}

// sum - step where it is above the bound, sum + step where it is below.
inline Vector lower_above(Vector sum, Vector bound, Vector step) {
  return _mm512_mask_sub_epi32(sum, _mm512_cmpgt_epi32_mask(sum, bound), sum, step);
}
inline Vector raise_below(Vector sum, Vector bound, Vector step) {
  return _mm512_mask_add_epi32(sum, _mm512_cmplt_epi32_mask(sum, bound), sum, step);
}

inline Floats scale(Vector sum, Floats multipliers) { return _mm512_mul_ps(_mm512_cvtepi32_ps(sum), multipliers); }
inline Floats clamp(Floats value, Floats low, Floats high) { return _mm512_min_ps(_mm512_max_ps(value, low), high); }
inline Vector round(Floats value) { return _mm512_cvtps_epi32(value); }

// The first `count` lanes, which fit the element type.
inline void store_results(uint8_t *to, Vector value, int64_t count) {
  const __m256i bytes = _mm512_cvtepi16_epi8(value);
  if (count >= kLanes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), bytes);
  } else {
    _mm256_mask_storeu_epi8(to, (uint32_t{1} << count) - 1, bytes);
  }
}
inline void store_results(int16_t *to, Vector value, int64_t count) {
  if (count >= kLanes) {
    _mm512_storeu_si512(to, value);
  } else {
    _mm512_mask_storeu_epi16(to, (uint32_t{1} << count) - 1, value);
  }
}

}  // namespace
}  // namespace avx512vnni
}  // namespace kvant

#include "transform_body.h"
