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
  bool bounded;              // no product of a sum and its multiplier reaches 2^31
  const kvant_target *target;
  uint8_t *y;
  int64_t y_stride;  // bytes from pixel to pixel
};

// The same for kernels 3 columns wide and at most 3 rows high, whose weights come column after column, 4 taps each (the
// fourth weight is zero). Columns before and behind the pixels of the input hold the zero point.
struct DepthwiseRows {
  const uint8_t *x[3];  // the block's first channel of the first pixel in the row of each tap
  int64_t steps[3];     // bytes from pixel to pixel; 0 in a row of padding
  int64_t step;         // the same where all are equal, else 0
  int64_t pixels;       // of the input, in a row
  int64_t pad;          // columns of padding before them
  int32_t zero_point;
  int64_t ahead, y_ahead;  // bytes to what will be read and written next, to be fetched now
};

using DepthwiseFunction = void (*)(const DepthwiseWork &work);
using DepthwiseSlide = void (*)(const DepthwiseWork &work, const DepthwiseRows &rows);

// For one kind of operands.
struct DepthwiseKind {
  DepthwiseFunction any;    // may be null
  DepthwiseSlide slide[2];  // for kernels 3 columns wide at stride 1 and 2
};

struct DepthwiseLoops {
  int64_t lanes;
  int64_t (*channel)(int64_t vectors, int64_t vector, int64_t lane);
  DepthwiseKind bytes;            // uint8 times int8, 4 taps
  DepthwiseKind shorts_of_uint8;  // widened to int16, 2 taps
  DepthwiseKind shorts;
};

}  // namespace kvant
