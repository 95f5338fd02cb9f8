// Direct convolution for x86 with AVX2.
#define KVANT_ISA avx2

#include "direct_vectors_avx2.h"

#include "direct_body.h"

namespace kvant {
namespace avx2 {

extern const DirectLoops kDirectLoops;
const DirectLoops kDirectLoops = {
    kLanes, kVectors, {TilePixels<1>::kCount, TilePixels<2>::kCount}, true, nullptr, 0, run<Narrow<Shorts>>, run<Wide>,
};

}  // namespace avx2
}  // namespace kvant
