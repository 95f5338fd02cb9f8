// Direct convolution for any processor.
#define KVANT_ISA portable

#include "direct_vectors_portable.h"

namespace kvant {
namespace portable {
namespace {

constexpr int64_t kVectors = 2;

template <int64_t V>
struct TilePixels {
  static constexpr int64_t kCount = V == 2 ? 4 : 6;
};

}  // namespace
}  // namespace portable
}  // namespace kvant

#include "direct_body.h"

namespace kvant {
namespace portable {

extern const DirectLoops kDirectLoops;
const DirectLoops kDirectLoops = {
    kLanes, kVectors, {TilePixels<1>::kCount, TilePixels<2>::kCount}, false, nullptr, 0, run<Narrow<Shorts>>, run<Wide>,
};

}  // namespace portable
}  // namespace kvant
