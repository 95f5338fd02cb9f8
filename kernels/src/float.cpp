// Weighted layers of float32 inputs: with float32 weights, and with integer weights and integers of each row's own.
//
// Products of two float32 are exact in float64, and sums are taken one by one in a written order (docs/numerics.md), so
// that every machine gives the same bits.
#include <algorithm>
#include <cmath>

#include "common.h"
#include "threads.h"

namespace kvant {
namespace {

constexpr int64_t kProducts = int64_t{1} << 16;  // that one thread should have at least
constexpr float kRounder = 12582912.0f;          // 1.5 * 2^23: adding and subtracting it rounds half to even
constexpr float kSmallestScale = 0x1p-100f;
constexpr float kLevels = 255.0f;                // of a row's integers, but one

float settle(double value, float low, float high) {
  value = value < low ? low : value;
  return static_cast<float>(value > high ? high : value);
}

struct FloatConv {
  const kvant_float_layer &layer;
  const kvant_conv_shape &shape;
  const float *x;
  float *y;

  int64_t outputs() const { return layer.outputs / layer.groups; }
  int64_t depth() const { return layer.channels / layer.groups; }

  // Sums of the outputs of one group at one output pixel: kernel rows, columns, channels, one after the other.
  void sum(int64_t image, int64_t row, int64_t column, int64_t group, double *sums) const {
    std::fill(sums, sums + outputs(), 0.0);
    for (int64_t i = 0; i < layer.kernel[0]; ++i) {
      const int64_t from_row = row * layer.strides[0] + i * layer.dilations[0] - shape.pads[0];
      if (from_row < 0 || from_row >= shape.size[0]) continue;
      for (int64_t j = 0; j < layer.kernel[1]; ++j) {
        const int64_t from = column * layer.strides[1] + j * layer.dilations[1] - shape.pads[1];
        if (from < 0 || from >= shape.size[1]) continue;
        const float *pixel =
            x + ((image * shape.size[0] + from_row) * shape.size[1] + from) * layer.channels + group * depth();
        const float *weights =
            layer.values + ((group * layer.kernel[0] + i) * layer.kernel[1] + j) * depth() * outputs();
        for (int64_t c = 0; c < depth(); ++c) {
          const double value = pixel[c];
          const float *own = weights + c * outputs();
          for (int64_t o = 0; o < outputs(); ++o) sums[o] += value * static_cast<double>(own[o]);
        }
      }
    }
  }

  int32_t run_lines(int64_t begin, int64_t end) const {
    double *sums = scratch_array<double>(0, outputs());
    KVANT_REQUIRE(sums, KVANT_NO_MEMORY);
    for (int64_t line = begin; line < end; ++line) {
      for (int64_t column = 0; column < shape.output_size[1]; ++column) {
        float *out = y + (line * shape.output_size[1] + column) * layer.outputs;
        for (int64_t group = 0; group < layer.groups; ++group) {
          sum(line / shape.output_size[0], line % shape.output_size[0], column, group, sums);
          for (int64_t o = 0; o < outputs(); ++o) {
            const int64_t at = group * outputs() + o;
            out[at] = settle(sums[o] + static_cast<double>(layer.bias[at]), layer.low, layer.high);
          }
        }
      }
    }
    return KVANT_OK;
  }
};

int32_t check(const kvant_float_layer &layer, const kvant_conv_shape &shape) {
  KVANT_REQUIRE(layer.values && layer.bias, KVANT_NULL_POINTER);
  KVANT_REQUIRE(layer.outputs >= 1 && layer.channels >= 1 && layer.groups >= 1 && shape.batch >= 0, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(layer.outputs % layer.groups == 0 && layer.channels % layer.groups == 0, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(layer.low <= layer.high, KVANT_BAD_ARGUMENT);
  int64_t bytes;
  for (int axis = 0; axis < 2; ++axis) {
    for (const int64_t size : {layer.kernel[axis], layer.strides[axis], layer.dilations[axis], shape.size[axis],
                               shape.output_size[axis]}) {
      KVANT_REQUIRE(size >= 1 && size <= INT32_MAX, KVANT_BAD_ARGUMENT);
    }
    KVANT_REQUIRE(shape.pads[axis] >= 0 && shape.pads[axis] <= INT32_MAX, KVANT_BAD_ARGUMENT);
  }
  KVANT_REQUIRE(product({layer.outputs, layer.channels, layer.kernel[0], layer.kernel[1], 64}, &bytes), KVANT_OVERFLOW);
  KVANT_REQUIRE(product({shape.batch, shape.size[0], shape.size[1], layer.channels, 64}, &bytes), KVANT_OVERFLOW);
  KVANT_REQUIRE(product({shape.batch, shape.output_size[0], shape.output_size[1], layer.outputs, 64}, &bytes),
                KVANT_OVERFLOW);
  return KVANT_OK;
}

// One row of x in 8-bit integers of its own scale, which is returned, and minus its own zero point.
float quantize_row(int64_t depth, const float *x, int16_t *q) {
  float low = 0.0f, high = 0.0f;
  for (int64_t k = 0; k < depth; ++k) {
    low = std::min(low, x[k]);
    high = std::max(high, x[k]);
  }
  const float scale = std::max(high / kLevels - low / kLevels, kSmallestScale);
  const float zero_point = std::min((-low / scale + kRounder) - kRounder, kLevels);
  for (int64_t k = 0; k < depth; ++k) {
    const float rounded = (x[k] / scale + kRounder) - kRounder;
    q[k] = static_cast<int16_t>(std::min(std::max(rounded, -zero_point), kLevels - zero_point));
  }
  return scale;
}

int64_t dot(int64_t depth, int64_t terms, const int16_t *q, const int16_t *weights) {
  int64_t total = 0;
  for (int64_t first = 0; first < depth; first += terms) {
    const int64_t last = std::min(depth, first + terms);
    int32_t part = 0;
    for (int64_t k = first; k < last; ++k) part += static_cast<int32_t>(q[k]) * weights[k];
    total += part;
  }
  return total;
}

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_float_conv(const kvant_float_layer *layer, const kvant_conv_shape *shape, const float *x,
                                    float *y) {
  KVANT_REQUIRE(layer && shape && x && y, KVANT_NULL_POINTER);
  const int32_t status = check(*layer, *shape);
  KVANT_REQUIRE(status == KVANT_OK, status);
  const FloatConv job{*layer, *shape, x, y};
  int64_t line = 0;  // products of one
  if (!product({layer->outputs, job.depth(), layer->kernel[0], layer->kernel[1], shape->output_size[1]}, &line)) {
    line = kProducts;
  }
  return parallel(shape->batch * shape->output_size[0], divide_up(kProducts, std::max<int64_t>(line, 1)),
                  [&](int64_t begin, int64_t end) { return job.run_lines(begin, end); });
}

extern "C" int32_t kvant_dynamic_linear(const kvant_dynamic_layer *layer, int64_t rows, const float *x, float *y) {
  KVANT_REQUIRE(layer && x && y && layer->values && layer->scales && layer->bias, KVANT_NULL_POINTER);
  KVANT_REQUIRE(layer->outputs >= 1 && layer->depth >= 1 && layer->terms >= 1 && rows >= 0, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(layer->low <= layer->high, KVANT_BAD_ARGUMENT);
  int64_t bytes;
  KVANT_REQUIRE(product({layer->outputs, layer->depth, 64}, &bytes), KVANT_OVERFLOW);
  KVANT_REQUIRE(product({rows, std::max(layer->outputs, layer->depth), 64}, &bytes), KVANT_OVERFLOW);
  const int64_t grain = divide_up(kProducts, layer->outputs * layer->depth);
  return parallel(rows, grain, [=](int64_t begin, int64_t end) -> int32_t {
    int16_t *q = scratch_array<int16_t>(0, layer->depth);
    KVANT_REQUIRE(q, KVANT_NO_MEMORY);
    for (int64_t row = begin; row < end; ++row) {
      const double scale = quantize_row(layer->depth, x + row * layer->depth, q);
      for (int64_t o = 0; o < layer->outputs; ++o) {
        const int64_t sum = dot(layer->depth, layer->terms, q, layer->values + o * layer->depth);
        const double value = static_cast<double>(sum) * (scale * static_cast<double>(layer->scales[o]));
        y[row * layer->outputs + o] = settle(value + static_cast<double>(layer->bias[o]), layer->low, layer->high);
      }
    }
    return KVANT_OK;
  });
}
