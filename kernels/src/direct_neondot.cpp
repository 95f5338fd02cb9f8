// Direct convolution for aarch64 with the dot product (sdot) of ARMv8.2.
#define KVANT_ISA neondot

#include <arm_neon.h>

#include "direct_vectors_portable.h"

namespace kvant {
namespace neondot {
namespace {

// sdot multiplies int8 by int8: of a pixel 128 is subtracted first, which turns its highest bit around.
constexpr int32_t kOffset = 128;

struct Bytes {
  static inline Vector add(Vector sum, Vector pixel, Vector weights) {
    const int8x16_t centred = vreinterpretq_s8_s32(veorq_s32(reinterpret_cast<int32x4_t>(pixel), vdupq_n_s32(INT32_C(-0x7f7f7f80))));
    return reinterpret_cast<Vector>(
        vdotq_s32(reinterpret_cast<int32x4_t>(sum), centred, reinterpret_cast<int8x16_t>(weights)));
  }
};

}  // namespace
}  // namespace neondot
}  // namespace kvant

#include "direct_body.h"

namespace kvant {
namespace neondot {

extern const DirectLoops kDirectLoops;
const DirectLoops kDirectLoops = {
    kLanes, kVectors, {TilePixels<1>::kCount, TilePixels<2>::kCount}, false, run<Narrow<Bytes>>, kOffset, run<Narrow<Shorts>>, run<Wide>,
};

}  // namespace neondot
}  // namespace kvant
