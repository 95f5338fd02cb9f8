// Convolution: panels of output pixels, gathered as 16-bit columns, times blocks of output channels. Depthwise
// convolution works on planes directly. A transposed convolution is one over pixels that lie `stride` apart.
#include <algorithm>

#include "threads.h"
#include "weights.h"

namespace kvant {
namespace {

struct Conv {
  kvant_conv_shape shape;
  const kvant_weights *weights;
  kvant_source x;
  kvant_target target;
  uint8_t *y;

  int64_t plane() const { return shape.size[0] * shape.size[1]; }
  int64_t pixels() const { return shape.output_size[0] * shape.output_size[1]; }
  int64_t group_channels() const { return shape.channels / weights->groups; }
  int64_t group_outputs() const { return weights->outputs / weights->groups; }
  uint8_t *output(int64_t image, int64_t channel) const {
    return y + (image * weights->outputs + channel) * pixels() * size_of(target.dtype);
  }
  const uint8_t *input(int64_t image, int64_t channel) const {
    return static_cast<const uint8_t *>(x.data) + (image * shape.channels + channel) * plane() * size_of(x.dtype);
  }
};

// Pixels (oh, ow) to (oh, ow + count) of one kernel tap, as 16-bit integers; padding is zero.
struct Tap {
  int64_t offset[2];  // where output pixel 0 of each axis reads, before striding
};

void gather_direct(const Conv &conv, const Tap &tap, const uint8_t *plane, int64_t oh, int64_t ow, int64_t count,
                   int16_t *out) {
  const kvant_conv_shape &s = conv.shape;
  const int64_t row = oh * s.strides[0] + tap.offset[0], width = s.size[1], step = s.strides[1];
  const int64_t column = ow * step + tap.offset[1];
  if (row < 0 || row >= s.size[0]) {
    std::fill(out, out + count, int16_t{0});
    return;
  }
  const int64_t low = column >= 0 ? 0 : std::min(count, divide_up(-column, step));
  const int64_t high = std::max(low, std::min(count, column >= width ? 0 : (width - 1 - column) / step + 1));
  std::fill(out, out + low, int16_t{0});
  if (high > low) {
    const uint8_t *from = plane + (row * width + column + low * step) * size_of(conv.x.dtype);
    loops().centre16(high - low, from, conv.x.dtype, step, conv.x.zero_point, out + low);
  }
  std::fill(out + high, out + count, int16_t{0});
}

void gather_transposed(const Conv &conv, const Tap &tap, const uint8_t *plane, int64_t oh, int64_t ow, int64_t count,
                       int16_t *out) {
  const kvant_conv_shape &s = conv.shape;
  std::fill(out, out + count, int16_t{0});
  const int64_t row = oh - tap.offset[0], step = s.strides[1];
  if (row < 0 || row % s.strides[0] != 0 || row / s.strides[0] >= s.size[0]) return;
  const uint8_t *from = plane + row / s.strides[0] * s.size[1] * size_of(conv.x.dtype);
  const int64_t column = ow - tap.offset[1];
  const int64_t first = column < 0 ? -column : (step - column % step) % step;
  for (int64_t i = first; i < count && (column + i) / step < s.size[1]; i += step) {
    const int64_t at = (column + i) / step;
    loops().centre16(1, from + at * size_of(conv.x.dtype), conv.x.dtype, 1, conv.x.zero_point, out + i);
  }
}

// Element k of the columns of output pixels first to first + count.
void gather_column(const Conv &conv, const uint8_t *planes, int64_t k, int64_t first, int64_t count, int16_t *out) {
  const kvant_conv_shape &s = conv.shape;
  const int64_t taps = s.kernel[0] * s.kernel[1], i = k % taps / s.kernel[1], j = k % s.kernel[1];
  const Tap tap{{i * s.dilations[0] - s.pads[0], j * s.dilations[1] - s.pads[1]}};
  const uint8_t *plane = planes + k / taps * conv.plane() * size_of(conv.x.dtype);
  const auto gather = s.transposed ? gather_transposed : gather_direct;
  for (int64_t done = 0; done < count;) {
    const int64_t pixel = first + done, ow = pixel % s.output_size[1];
    const int64_t length = std::min(count - done, s.output_size[1] - ow);
    gather(conv, tap, plane, pixel / s.output_size[1], ow, length, out + done);
    done += length;
  }
}

// panel[pair][pixel][2] of `width` pixels, of which `count` are real.
void gather_panel(const Conv &conv, const uint8_t *planes, int64_t first, int64_t count, int64_t width, int16_t *rows,
                  int16_t *panel) {
  const Depth &depth = conv.weights->depth;
  std::fill(rows, rows + 2 * width, int16_t{0});
  for (int64_t p = 0; p < depth.pairs; ++p) {
    gather_column(conv, planes, 2 * p, first, count, rows);
    if (2 * p + 1 < depth.count) {
      gather_column(conv, planes, 2 * p + 1, first, count, rows + width);
    } else {
      std::fill(rows + width, rows + 2 * width, int16_t{0});
    }
    loops().interleave(width, rows, rows + width, panel + 2 * p * width);
  }
}

// How the work is cut: panels of pixels of every image and group, and each panel's row blocks in `splits` parts.
struct Cut {
  int64_t vectors, width, panels, splits, items;
};

Cut cut(const Conv &conv) {
  Cut result{};
  result.vectors = panel_vectors(conv.pixels());
  result.width = result.vectors * loops().lanes;
  result.panels = divide_up(conv.pixels(), result.width);
  const int64_t whole = conv.shape.batch * conv.weights->groups * result.panels;
  const int64_t wanted = 4 * num_threads();
  const int64_t blocks = static_cast<int64_t>(conv.weights->blocks.size());
  result.splits = whole >= wanted ? 1 : std::min(blocks, divide_up(wanted, std::max<int64_t>(1, whole)));
  result.items = whole * result.splits;
  return result;
}

void run_item(const Conv &conv, const Cut &cut, int64_t item, int16_t *panel, int16_t *rows, void *tile) {
  const kvant_weights &weights = *conv.weights;
  const int64_t split = item % cut.splits, first = item / cut.splits % cut.panels * cut.width;
  const int64_t group = item / cut.splits / cut.panels % weights.groups;
  const int64_t image = item / cut.splits / cut.panels / weights.groups;
  const int64_t count = std::min(cut.width, conv.pixels() - first);
  gather_panel(conv, conv.input(image, group * conv.group_channels()), first, count, cut.width, rows, panel);
  const Finish finish{weights.bias.data(), weights.multipliers.data(), false, false, conv.target};
  const int64_t blocks = static_cast<int64_t>(weights.blocks.size());
  for (int64_t b = blocks * split / cut.splits; b < blocks * (split + 1) / cut.splits; ++b) {
    const RowBlock &rows_of = weights.blocks[static_cast<size_t>(b)];
    const int64_t channel = group * conv.group_outputs() + rows_of.first;
    const Block block{rows_of.rows, rows_of.used, cut.vectors, count,
                      weights.packed.data() + group * weights.group_size + rows_of.offset, panel};
    uint8_t *to = conv.output(image, channel) + first * size_of(conv.target.dtype);
    multiply_block(block, weights.depth, finish, channel, 0, tile, to, conv.pixels());
  }
}

int32_t run_dense(const Conv &conv) {
  const Cut pieces = cut(conv);
  return parallel(pieces.items, 1, [&conv, pieces](int64_t begin, int64_t end) -> int32_t {
    int16_t *panel = scratch_array<int16_t>(0, 2 * conv.weights->depth.pairs * pieces.width);
    int16_t *rows = scratch_array<int16_t>(1, 2 * pieces.width);
    void *tile = scratch(2, tile_bytes());
    KVANT_REQUIRE(panel && rows && tile, KVANT_NO_MEMORY);
    for (int64_t item = begin; item < end; ++item) run_item(conv, pieces, item, panel, rows, tile);
    return KVANT_OK;
  });
}

// A plane with its padding, as far as the kernel reaches.
struct Padded {
  int64_t height, width;
};

Padded padded_size(const Conv &conv) {
  const kvant_conv_shape &s = conv.shape;
  return {(s.output_size[0] - 1) * s.strides[0] + (s.kernel[0] - 1) * s.dilations[0] + 1,
          (s.output_size[1] - 1) * s.strides[1] + (s.kernel[1] - 1) * s.dilations[1] + 1};
}

void pad_plane(const Conv &conv, const Padded &padded, const uint8_t *plane, int16_t *out) {
  const kvant_conv_shape &s = conv.shape;
  const int64_t top = s.pads[0], left = s.pads[1];
  const int64_t count = std::clamp<int64_t>(padded.width - left, 0, s.size[1]);
  const int64_t begin = std::min(left, padded.width);
  for (int64_t row = 0; row < padded.height; ++row) {
    int16_t *to = out + row * padded.width;
    const int64_t from = row - top;
    if (from < 0 || from >= s.size[0]) {
      std::fill(to, to + padded.width, int16_t{0});
      continue;
    }
    std::fill(to, to + begin, int16_t{0});
    loops().centre16(count, plane + from * s.size[1] * size_of(conv.x.dtype), conv.x.dtype, 1, conv.x.zero_point,
                     to + begin);
    std::fill(to + begin + count, to + padded.width, int16_t{0});
  }
}

void run_plane(const Conv &conv, int64_t image, int64_t channel, const Padded &padded, const int64_t *offsets,
               const int16_t *plane, int32_t *sums) {
  const kvant_conv_shape &s = conv.shape;
  const kvant_weights &weights = *conv.weights;
  const int64_t taps = s.kernel[0] * s.kernel[1], width = s.output_size[1];
  const size_t at = static_cast<size_t>(channel);
  for (int64_t oh = 0; oh < s.output_size[0]; ++oh) {
    loops().depthwise(width, taps, plane + oh * s.strides[0] * padded.width, offsets,
                      weights.values.data() + channel * taps, s.strides[1], static_cast<int32_t>(weights.bias[at]),
                      sums);
    uint8_t *to = conv.output(image, channel) + oh * width * size_of(conv.target.dtype);
    loops().settle32(width, sums, weights.multipliers[at], &conv.target, to);
  }
}

int32_t run_depthwise(const Conv &conv) {
  const Padded padded = padded_size(conv);
  const int64_t taps = conv.shape.kernel[0] * conv.shape.kernel[1], outputs = conv.weights->outputs;
  int64_t room;
  KVANT_REQUIRE(product({padded.height, padded.width, 2}, &room), KVANT_OVERFLOW);
  const int64_t grain = divide_up(4096, std::max<int64_t>(1, conv.pixels()));
  return parallel(conv.shape.batch * outputs, grain, [&conv, padded, taps, outputs, room](int64_t begin, int64_t end) {
    int16_t *plane = scratch_array<int16_t>(0, room / 2);
    int32_t *sums = scratch_array<int32_t>(1, conv.shape.output_size[1]);
    int64_t *offsets = scratch_array<int64_t>(2, taps);
    KVANT_REQUIRE(plane && sums && offsets, static_cast<int32_t>(KVANT_NO_MEMORY));
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t i = t / conv.shape.kernel[1], j = t % conv.shape.kernel[1];
      offsets[t] = i * conv.shape.dilations[0] * padded.width + j * conv.shape.dilations[1];
    }
    int64_t ready = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / outputs, channel = item % outputs, source = channel / conv.group_outputs();
      if (image * outputs + source != ready) {
        pad_plane(conv, padded, conv.input(image, source), plane);
        ready = image * outputs + source;
      }
      run_plane(conv, image, channel, padded, offsets, plane, sums);
    }
    return static_cast<int32_t>(KVANT_OK);
  });
}

// A 1x1 kernel that touches every pixel sees one long row.
void flatten(kvant_conv_shape *shape) {
  for (int axis = 0; axis < 2; ++axis) {
    if (shape->kernel[axis] != 1 || shape->strides[axis] != 1 || shape->pads[axis] != 0 ||
        shape->size[axis] != shape->output_size[axis]) {
      return;
    }
  }
  shape->size[1] *= shape->size[0];
  shape->output_size[1] *= shape->output_size[0];
  shape->size[0] = shape->output_size[0] = 1;
}

bool fits(const kvant_conv_shape *shape, const kvant_weights *weights) {
  constexpr int64_t kMost = INT32_MAX;
  int64_t taps;
  for (int axis = 0; axis < 2; ++axis) {
    for (const int64_t value : {shape->size[axis], shape->output_size[axis], shape->kernel[axis],
                                shape->strides[axis], shape->dilations[axis]}) {
      if (value < 1 || value > kMost) return false;
    }
    if (shape->pads[axis] < 0 || shape->pads[axis] > kMost) return false;
  }
  if (shape->batch < 0 || shape->channels < 1 || shape->channels % weights->groups != 0 || weights->linear) return false;
  return product({shape->channels / weights->groups, shape->kernel[0], shape->kernel[1]}, &taps) &&
         taps == weights->depth.count;
}

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_conv(const kvant_conv_shape *shape, const kvant_weights *weights, const kvant_source *x,
                              const kvant_target *target, void *y) {
  KVANT_REQUIRE(shape && weights && x && x->data && target && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(fits(shape, weights) && valid(x) && valid(target), KVANT_BAD_ARGUMENT);
  int64_t given, written;
  KVANT_REQUIRE(product({shape->batch, shape->channels, shape->size[0], shape->size[1], 64}, &given), KVANT_OVERFLOW);
  KVANT_REQUIRE(product({shape->batch, weights->outputs, shape->output_size[0], shape->output_size[1], 64}, &written),
                KVANT_OVERFLOW);
  Conv conv{*shape, weights, *x, *target, static_cast<uint8_t *>(y)};
  const bool depthwise = !shape->transposed && weights->groups > 1 && shape->channels == weights->groups;
  if (depthwise && !weights->depth.wide) return run_depthwise(conv);
  if (!shape->transposed) flatten(&conv.shape);
  return run_dense(conv);
}
