// What the entry points of convolution share.
#pragma once

#include <memory>

#include "algorithm.h"

struct kvant_weights {
  kvant_conv_layer layer;  // as given, pointers null
  std::unique_ptr<kvant::Algorithm> algorithm;
};

namespace kvant {

// Kernels, sizes and strides fit each other, and no product of them overflows.
int32_t check_shape(const kvant_conv_shape &shape, const kvant_conv_layer &layer);
// null, or something that can be added to what is written as `target`.
bool valid(const kvant_addend *addend, const kvant_target &target);

// The input as the algorithm wants it, in place or copied; what is written, and where, is left to the caller.
int32_t make_job(const kvant_weights &weights, const kvant_conv_shape &shape, const void *x, Job *job);

}  // namespace kvant
