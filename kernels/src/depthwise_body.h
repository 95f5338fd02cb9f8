// Depthwise convolution, a few pixels at a time. Included by one source file for each instruction set, which defines
// KVANT_ISA (a namespace) and, before this, in that namespace: kLanes, Vector, Floats, load_vector, to_float and
// the kinds of operands, each with kTaps, load, interleave, add and a class Finish that writes the results of one pixel.
// Nothing here may call an inline function of a header: the linker could keep the copy of another
// instruction set.
namespace kvant {
namespace KVANT_ISA {
namespace {

template <typename Kind, int64_t P>
__attribute__((always_inline)) inline void depthwise_tile(const DepthwiseWork &work, const typename Kind::Finish &finish,
                                                          const uint8_t *x, uint8_t *y) {
  constexpr int64_t kTaps = Kind::kTaps;
  Vector sums[P][kTaps];
#pragma GCC unroll 4
  for (int64_t v = 0; v < kTaps; ++v) {
    const Vector bias = load_vector(work.bias + v * kLanes);
#pragma GCC unroll 8
    for (int64_t p = 0; p < P; ++p) sums[p][v] = bias;
  }
  const uint8_t *weights = work.weights;
  const int64_t *offsets = work.offsets;
  for (int64_t g = 0; g < work.groups; ++g, offsets += kTaps, weights += kTaps * kLanes * 4) {
    Vector own[kTaps];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kTaps; ++v) own[v] = load_vector(weights + v * kLanes * 4);
#pragma GCC unroll 8
    for (int64_t p = 0; p < P; ++p) {
      Vector taps[kTaps];
#pragma GCC unroll 4
      for (int64_t t = 0; t < kTaps; ++t) taps[t] = Kind::load(x + p * work.column + offsets[t]);
      Kind::interleave(taps);
#pragma GCC unroll 4
      for (int64_t v = 0; v < kTaps; ++v) sums[p][v] = Kind::add(sums[p][v], taps[v], own[v]);
    }
  }
#pragma GCC unroll 8
  for (int64_t p = 0; p < P; ++p) {
    Floats values[kTaps];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kTaps; ++v) values[v] = to_float(sums[p][v]);
    finish.store(values, y + p * work.y_stride);
  }
}

template <typename Kind>
void depthwise(const DepthwiseWork &work) {
  constexpr int64_t kPixels = 4;
  const typename Kind::Finish finish(work);
  const uint8_t *x = work.x;
  uint8_t *y = work.y;
  int64_t left = work.count;
  for (; left >= kPixels; left -= kPixels, x += kPixels * work.column, y += kPixels * work.y_stride) {
    depthwise_tile<Kind, kPixels>(work, finish, x, y);
  }
  for (; left > 0; --left, x += work.column, y += work.y_stride) depthwise_tile<Kind, 1>(work, finish, x, y);
}

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
