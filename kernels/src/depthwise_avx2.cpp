// Depthwise convolution for x86 with AVX2.
#define KVANT_ISA avx2

#include "depthwise_vectors_avx2.h"

#include "depthwise_body.h"

namespace kvant {
namespace avx2 {

extern const DepthwiseLoops kDepthwiseLoops;
constexpr DepthwiseLoops kDepthwiseLoops = loops_of_shorts();

}  // namespace avx2
}  // namespace kvant
