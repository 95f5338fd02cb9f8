// The input of a convolution as its algorithm reads it: in place, or copied with its padding.
#pragma once

#include <cstdint>

#include "algorithm.h"

namespace kvant {

// Where input pixels lie within what an algorithm reads: pixel (i, j) is at (i * step[0] + pads[0], ...), padding between
// and around. Negative pads cut pixels off.
struct Placement {
  const uint8_t *x;
  int32_t dtype, zero_point;
  int64_t batch, channels;
  int64_t size[2];
  int64_t x_stride;
  int64_t step[2];
  int64_t pads[2];
};

// A status; *padded stays valid until the next call on this thread.
int32_t place(const Placement &placement, Format format, const Reach &reach, bool in_place, Padded *padded);

// Whether the pixels lie side by side, with padding around them only, and where they lie.
bool is_plain(const Placement &placement);
Padded as_it_lies(const Placement &placement);

// Whether what lies at `reach` is what the memory of the input holds, and within it.
bool can_read_in_place(const Placement &placement, Format format, const Reach &reach);

}  // namespace kvant
