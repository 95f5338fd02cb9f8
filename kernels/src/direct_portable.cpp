// Direct convolution for any processor.
#define KVANT_ISA portable

#include "direct_vectors_portable.h"

#include "direct_body.h"

namespace kvant {
namespace portable {

extern const DirectLoops kDirectLoops;
const DirectLoops kDirectLoops = {
    kLanes, kVectors, {TilePixels<1>::kCount, TilePixels<2>::kCount}, false, nullptr, 0, run<Narrow<Shorts>>, run<Wide>,
};

}  // namespace portable
}  // namespace kvant
