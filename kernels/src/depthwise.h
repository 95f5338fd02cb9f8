// Depthwise convolution: what its glue (depthwise.cpp) asks of the inner loops of one instruction set.
//
// Lanes are channels. Taps come in groups of as many as fit 32 bits (4 of uint8 times int8, 2 of int16 times int16): the
// elements of a group's taps are interleaved, and each vector of the result meets one vector of weights. So a block has as
// many vectors as a group has taps, and `channel` tells which channel of the block a lane holds.
#pragma once

#include <cstdint>

#include "kvant.h"

namespace kvant {

// One block of channels in one row of output pixels.
struct DepthwiseWork {
  const uint8_t *x;          // the block's first channel of what the first output pixel sees first
  int64_t column;            // bytes from what one output pixel sees to what the next one sees
  int64_t count;             // output pixels
  const int64_t *offsets;    // of each tap, in bytes
  int64_t groups;            // of taps
  const uint8_t *weights;    // [group][vector][lane][tap]
  const int32_t *bias;       // [vector][lane]
  const float *multipliers;  // [vector][lane]
  int64_t channels;          // of the block that are real; all of them are read
  const kvant_target *target;
  uint8_t *y;
  int64_t y_stride;  // bytes from pixel to pixel
};

using DepthwiseFunction = void (*)(const DepthwiseWork &work);

struct DepthwiseLoops {
  int64_t lanes;
  int64_t (*channel)(int64_t vectors, int64_t vector, int64_t lane);
  DepthwiseFunction bytes;          // uint8 times int8, 4 taps; may be null
  DepthwiseFunction three_columns;  // the same for 3 groups, each one pixel's distance from the last; may be null
  DepthwiseFunction shorts_of_uint8;  // widened to int16, 2 taps
  DepthwiseFunction shorts;
};

}  // namespace kvant
