// Direct convolution for x86 with AVX2 and AVX-VNNI: its 8-bit products, in AVX2's vectors.
#define KVANT_ISA avxvnni

#include "direct_vectors_avx2.h"

namespace kvant {
namespace avxvnni {
namespace {

struct Bytes {
  static inline Vector add(Vector sum, Vector pixel, Vector weights) {
#if defined(KVANT_AVXVNNI_AS_AVX512)  // the same instruction as processors with AVX-512 have it, for tests
    __asm__("%{evex%} vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(pixel), "v"(weights));
#else
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(pixel), "x"(weights));
#endif
    return sum;
  }
};

}  // namespace
}  // namespace avxvnni
}  // namespace kvant

#include "direct_body.h"

namespace kvant {
namespace avxvnni {

extern const DirectLoops kDirectLoops;
const DirectLoops kDirectLoops = {
    kLanes, kVectors, {TilePixels<1>::kCount, TilePixels<2>::kCount}, true, run<Narrow<Bytes>>, 0, run<Narrow<Shorts>>, run<Wide>,
};

}  // namespace avxvnni
}  // namespace kvant
