// Direct convolution for aarch64 with the dot product (sdot) of ARMv8.2.
#define KVANT_ISA neondot

#include <arm_neon.h>

#include "direct_vectors_portable.h"

namespace kvant {
namespace neondot {
namespace {

constexpr int64_t kVectors = 3;

// So many that sums, a register of each pixel and a vector of weights fit 32 registers.
template <int64_t V>
struct TilePixels {
  static constexpr int64_t kCount = V == 3 ? 6 : 8;
};

// sdot multiplies int8 by int8: of a pixel 128 is subtracted first, which turns its highest bit around.
constexpr int32_t kOffset = 128;

struct Bytes {
  static constexpr int64_t kTogether = 4;

  static inline Vector together(const uint8_t *groups) { return centred(load(groups)); }

  // sdot takes one group of four from where it lies; to spread it would take as long as a product on many processors.
  template <int kGroup>
  static inline Vector add_one(Vector sum, Vector pixels, Vector weights) {
    return reinterpret_cast<Vector>(vdotq_laneq_s32(reinterpret_cast<int32x4_t>(sum), reinterpret_cast<int8x16_t>(weights),
                                                    reinterpret_cast<int8x16_t>(pixels), kGroup));
  }

  static inline Vector add(Vector sum, Vector pixel, Vector weights) { return add_one<0>(sum, centred(pixel), weights); }

 private:
  static inline Vector centred(Vector pixels) { return pixels ^ INT32_C(-0x7f7f7f80); }
};

}  // namespace
}  // namespace neondot
}  // namespace kvant

#include "direct_body.h"

namespace kvant {
namespace neondot {

extern const DirectLoops kDirectLoops;
const DirectLoops kDirectLoops = {
    kLanes,
    kVectors,
    {TilePixels<1>::kCount, TilePixels<2>::kCount, TilePixels<3>::kCount},
    false,
    run<Narrow<Bytes>>,
    kOffset,
    run<Narrow<Shorts>>,
    run<Wide>,
};

}  // namespace neondot
}  // namespace kvant
