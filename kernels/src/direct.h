// Direct convolution: what its glue (direct.cpp) asks of the inner loops of one instruction set.
//
// Both operands come in groups of 4 bytes along the summed axis, 4 elements of uint8 times int8 or 2 of int16 times
// int16: a group of a pixel is broadcast and meets a vector that holds the same group of as many outputs as it has lanes.
#pragma once

#include <cstdint>

#include "kvant.h"

namespace kvant {

constexpr int64_t kGroupBytes = 4;

// One block of outputs at a stretch of output pixels.
struct DirectWork {
  const uint8_t *x;            // what output pixel (0, 0) of image 0 sees first
  int64_t image, row, column;  // bytes from what one output image, row or pixel sees to what the next one sees
  int64_t height, width;       // of the output
  int64_t first, count;        // output pixels, counted over all images
  const int64_t *offsets;      // of each run: bytes from what a pixel sees first; 0 for the first run
  int64_t runs, groups;        // runs of as many groups
  int64_t stretch;             // of wide sums: groups that int32 surely holds
  const uint8_t *weights;      // [run][group][vector][lane][kGroupBytes]
  const uint8_t *next;         // null, or the weights that come next and are not in the cache yet
  int64_t next_bytes;          // of them
  int64_t vectors, outputs;    // of the block
  const int64_t *bias;         // vectors * lanes
  const int32_t *narrow_bias;  // the same modulo 2^32
  bool bounded;                // no product of an int32 and a multiplier reaches 2^31
  const float *multipliers;    // vectors * lanes
  const kvant_target *target;
  uint8_t *y;                  // the block's first output at output pixel 0
  int64_t y_stride;            // bytes from pixel to pixel
  const kvant_addend *addend;  // null, or what is added to the results
  bool bounded_sums;           // no sum of both, each times its multiplier, reaches 2^31
  const uint8_t *added;        // the block's first output at output pixel 0
  int64_t added_stride;        // bytes from pixel to pixel
};

// What most layers write. All but bytes have a tile of their own, as one more way out of the tile of bytes makes GCC 12 spill
// there too.
enum class Simple { kBytes, kAllBytes, kShorts };

constexpr int64_t kMostVectors = 4;

struct DirectLoops {
  int64_t lanes;                 // outputs of one vector
  int64_t vectors;               // most vectors of a block
  int64_t pixels[kMostVectors];  // of a tile, by vectors of the block less one
  bool woven;                    // blocks of most vectors deal out their outputs to the vectors by fours, see lane_of
  void (*bytes)(const DirectWork &work);   // uint8 less `offset`, times int8, sums modulo 2^32; may be null
  int32_t offset;
  void (*shorts)(const DirectWork &work);  // int16 times int16, sums modulo 2^32
  void (*wide)(const DirectWork &work);    // int16 times int16, sums in int64
};

}  // namespace kvant
