// A depthwise convolution and the pointwise one that reads it, in strips of rows: each thread computes a strip of the
// first into memory of its own and the second from there, while it is in the cache.
#include <algorithm>
#include <cstring>
#include <exception>

#include "common.h"
#include "conv.h"
#include "threads.h"

namespace kvant {
namespace {

constexpr int64_t kStripBytes = int64_t{1} << 17;  // of a strip: an eighth of the second-level cache
constexpr int64_t kWidePixel = 512;                // bytes
constexpr int64_t kLeastStrips = 8;                // for each thread, so that all of them end together
constexpr int kStripSlot = 2;                      // of scratch memory

struct Pair {
  Job first;                    // its y is a strip
  const kvant_weights *depthwise, *pointwise;
  Job second;                   // its x is a strip
  int64_t stride;               // elements from pixel to pixel of a strip
  int64_t rows;                 // of a strip
};

bool is_pointwise(const kvant_conv_layer &layer) {
  for (int axis = 0; axis < 2; ++axis) {
    if (layer.kernel[axis] != 1 || layer.strides[axis] != 1) return false;
  }
  return layer.groups == 1 && !layer.transposed;
}

bool fit(const kvant_conv_layer &depthwise, const kvant_target &between, const kvant_conv_layer &pointwise) {
  return depthwise.groups == depthwise.channels && depthwise.outputs == depthwise.channels && !depthwise.transposed &&
         is_pointwise(pointwise) && pointwise.channels == depthwise.outputs && pointwise.dtype == between.dtype &&
         pointwise.zero_point == between.zero_point;
}

int64_t rows_of(const Pair &pair, int64_t lines) {
  const int64_t row = pair.first.output_size[1] * pair.stride * size_of(pair.first.target.dtype);
  const int64_t fair = lines / (kLeastStrips * num_threads());
  return std::max<int64_t>(1, std::min(fair, kStripBytes / row));
}

// Lines begin to end, no more than a strip.
int32_t run_strip(const Pair &pair, int64_t begin, int64_t end) {
  const int64_t width = pair.first.output_size[1], count = (end - begin) * width * pair.stride;
  const int64_t size = size_of(pair.first.target.dtype), slack = 64;
  Job first = pair.first, second = pair.second;
  uint8_t *strip = scratch_array<uint8_t>(kStripSlot, count * size + slack);
  KVANT_REQUIRE(strip != nullptr, KVANT_NO_MEMORY);
  first.y = strip - begin * width * pair.stride * size;
  const int32_t status = pair.depthwise->algorithm->run_lines(first, begin, end);
  KVANT_REQUIRE(status == KVANT_OK, status);
  second.x = {strip, 0, width * pair.stride, pair.stride};
  const int64_t outputs = pair.pointwise->layer.outputs, written = size_of(second.target.dtype);
  second.output_size[0] = end - begin;
  second.y += begin * width * second.y_stride * written;
  kvant_addend addend;
  if (second.addend != nullptr) {
    addend = *second.addend;
    addend.data = static_cast<const uint8_t *>(addend.data) + begin * width * outputs * written;
    second.addend = &addend;
  }
  return pair.pointwise->algorithm->run_lines(second, 0, end - begin);
}

int32_t run(Pair pair, const kvant_conv_shape &shape, const void *x) {
  const int32_t status = make_job(*pair.depthwise, shape, x, &pair.first);
  KVANT_REQUIRE(status == KVANT_OK, status);
  const int64_t size = size_of(pair.first.target.dtype);
  // Whole cache lines where that wastes little.
  const int64_t pixel = pair.depthwise->layer.outputs * size;
  pair.stride = (pixel < kWidePixel ? pixel : round_up(pixel, 64)) / size;
  pair.first.y_stride = pair.stride;
  pair.second.batch = 1;
  pair.second.output_size[1] = shape.output_size[1];
  const int64_t lines = shape.batch * shape.output_size[0];
  pair.rows = rows_of(pair, lines);
  return parallel(divide_up(lines, pair.rows), 1, [&](int64_t begin, int64_t end) -> int32_t {
    int32_t worst = KVANT_OK;
    for (int64_t strip = begin; strip < end; ++strip) {
      worst = std::max(worst, run_strip(pair, strip * pair.rows, std::min(lines, (strip + 1) * pair.rows)));
    }
    return worst;
  });
}

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_conv_pair(const kvant_conv_shape *shape, const kvant_weights *depthwise, const void *x,
                                   const kvant_target *between, const kvant_weights *pointwise,
                                   const kvant_target *target, const kvant_addend *addend, void *y) {
  KVANT_REQUIRE(shape && depthwise && x && between && pointwise && target && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(valid(between) && valid(target) && valid(addend, *target), KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(fit(depthwise->layer, *between, pointwise->layer), KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(depthwise->algorithm->runs_lines() && pointwise->algorithm->runs_lines(), KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(shape->y_stride >= pointwise->layer.outputs, KVANT_BAD_ARGUMENT);
  kvant_conv_shape checked = *shape;
  checked.y_stride = std::max(shape->y_stride, depthwise->layer.outputs);
  const int32_t status = check_shape(checked, depthwise->layer);
  KVANT_REQUIRE(status == KVANT_OK, status);
  if (shape->batch == 0) return KVANT_OK;
  Pair pair{};
  pair.depthwise = depthwise;
  pair.pointwise = pointwise;
  pair.first.target = *between;
  pair.second.target = *target;
  pair.second.addend = addend;
  pair.second.y = static_cast<uint8_t *>(y);
  pair.second.y_stride = shape->y_stride;
  try {
    return run(pair, *shape, x);
  } catch (const std::exception &) {
    return KVANT_NO_MEMORY;
  }
}
