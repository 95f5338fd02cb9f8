// Depthwise convolution for x86 with AVX2 and AVX-VNNI.
#define KVANT_ISA avxvnni
#define KVANT_HAS_DOT

#include "depthwise_vectors_avx2.h"

#include "depthwise_body.h"

namespace kvant {
namespace avxvnni {

extern const DepthwiseLoops kDepthwiseLoops;
constexpr DepthwiseLoops kDepthwiseLoops = loops_of_shorts();

}  // namespace avxvnni
}  // namespace kvant
