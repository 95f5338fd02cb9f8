// Direct convolution for x86 with AVX2 and AVX-VNNI: its 8-bit products, in AVX2's vectors.
#define KVANT_ISA avxvnni
#define KVANT_HAS_DOT

#include "direct_vectors_avx2.h"

namespace kvant {
namespace avxvnni {
namespace {

struct Bytes {
  static constexpr int64_t kTogether = 1;
  static inline Vector add(Vector sum, Vector pixel, Vector weights) { return dot_bytes(sum, pixel, weights); }
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
