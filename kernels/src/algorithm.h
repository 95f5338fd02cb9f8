// How a convolution may be computed. Every algorithm gives the same bits; which one runs is decided when a layer is packed.
#pragma once

#include <cstdint>
#include <memory>

#include "kvant.h"

namespace kvant {

// Input as an algorithm reads it: (batch, rows, columns, channels), padding included.
enum class Format {
  kRaw,       // elements of the layer's dtype; padding holds the zero point
  kCentred16  // int16 with the zero point subtracted; padding is 0
};

struct Padded {
  const uint8_t *data;
  int64_t image;   // elements from image to image
  int64_t row;     // from row to row
  int64_t column;  // from pixel to pixel
};

// One application of a layer. Output pixel (i, j) sees pixels (i * stride + tap * dilation - pads[0], ...) of the input. It
// has `size` pixels, what lies outside counts as the zero point. Only an algorithm that pads its input itself meets such
// pixels: others get `size` as `reach` asked for, or more, and no pads. y points to output pixel (0, 0) of image 0; its
// pixels are y_stride elements apart, without gaps between rows or images.
struct Job {
  int64_t batch;
  int64_t output_size[2];
  Padded x;
  int64_t size[2], pads[2];
  kvant_target target;
  const kvant_addend *addend;  // null, or what is added; only for an algorithm that adds itself
  uint8_t *y;
  int64_t y_stride;
};

// Nothing is added, or the sum of two 16-bit integers times its multipliers stays far below 2^31.
bool is_small(const kvant_addend *addend);

struct Reach {
  int64_t rows, columns;  // of the padded input that may be read
  int64_t slack;          // elements behind its last pixel that may be read too; their values do not matter
};

class Algorithm {
 public:
  virtual ~Algorithm() = default;
  virtual const char *name() const = 0;
  virtual int64_t bytes() const = 0;  // of packed weights
  virtual Format format() const = 0;
  virtual bool pads_itself() const { return false; }  // if so, it reads no slack either
  virtual bool adds_itself() const { return false; }
  virtual Reach reach(const int64_t output_size[2]) const = 0;
  virtual int32_t run(const Job &job) const = 0;  // a kvant_status; uses kvant::parallel
  // Lines begin to end of the output, counted over all images, by the calling thread alone.
  virtual bool runs_lines() const { return false; }
  virtual int32_t run_lines(const Job &, int64_t, int64_t) const { return KVANT_BAD_ARGUMENT; }
};

// Each makes its algorithm for a layer (stride, groups, types, transposed or not: any), or null where it does not apply
// or where it cannot be proven exact for these weights. They throw std::bad_alloc. `layer` is valid during the call only.
std::unique_ptr<Algorithm> make_direct(const kvant_conv_layer &layer);    // applies to everything but transposed layers
std::unique_ptr<Algorithm> make_depthwise(const kvant_conv_layer &layer);
// Late: weights are kept in the file's size, and transformed in each run.
std::unique_ptr<Algorithm> make_winograd(const kvant_conv_layer &layer, bool late);
std::unique_ptr<Algorithm> make_transform(const kvant_conv_layer &layer, bool late);  // number-theoretic
// Bit operations; exact only if the input holds 0, 1 and 2, which the caller knows.
std::unique_ptr<Algorithm> make_xnor(const kvant_conv_layer &layer);
int64_t xnor_bytes(const kvant_conv_layer &layer);  // of packed weights, -1 where it does not apply

}  // namespace kvant
