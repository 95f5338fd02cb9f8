// Sums of products in vectors of 256 bits: with AVX2, and by one instruction where a source file of AVX-VNNI has defined
// KVANT_HAS_DOT. Inline assembly: such files are compiled for AVX2 alone, which every compiler knows.
#pragma once

#include <immintrin.h>

namespace kvant {
namespace KVANT_ISA {
namespace {

#if defined(KVANT_HAS_DOT)

#if defined(KVANT_AVXVNNI_AS_AVX512)  // as processors with AVX-512 have it, for tests
#define KVANT_DOT(name, sum, a, b) __asm__("%{evex%} " name " %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
#else
#define KVANT_DOT(name, sum, a, b) __asm__("%{vex%} " name " %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b))
#endif

// Two products of 16 bits for each sum.
inline __m256i dot_shorts(__m256i sum, __m256i a, __m256i b) {
  KVANT_DOT("vpdpwssd", sum, a, b);
  return sum;
}

// Four products of uint8 and int8 for each sum.
inline __m256i dot_bytes(__m256i sum, __m256i a, __m256i b) {
  KVANT_DOT("vpdpbusd", sum, a, b);
  return sum;
}

#else

inline __m256i dot_shorts(__m256i sum, __m256i a, __m256i b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }

#endif

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
