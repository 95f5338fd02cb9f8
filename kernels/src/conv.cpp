// Convolution: panels of output pixels, gathered as 16-bit columns, times blocks of output channels. Depthwise
// convolution works on planes directly. A transposed convolution is one over pixels that lie `stride` apart.
#include <algorithm>
#include <cstring>
#include <exception>

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

// Where each of the products of a sum takes its pixel.
struct Taps {
  std::vector<int64_t> planes, rows, columns;

  explicit Taps(const Conv &conv) {
    const kvant_conv_shape &s = conv.shape;
    for (int64_t channel = 0; channel < conv.group_channels(); ++channel) {
      for (int64_t i = 0; i < s.kernel[0]; ++i) {
        for (int64_t j = 0; j < s.kernel[1]; ++j) {
          planes.push_back(channel * conv.plane());
          rows.push_back(i * s.dilations[0] - s.pads[0]);
          columns.push_back(j * s.dilations[1] - s.pads[1]);
        }
      }
    }
  }
};

// The stretches of output rows that pixels first to first + count consist of.
void cut_segments(const Conv &conv, int64_t first, int64_t count, std::vector<Segment> *segments) {
  const kvant_conv_shape &s = conv.shape;
  segments->clear();
  for (int64_t done = 0; done < count;) {
    const int64_t row = (first + done) / s.output_size[1], column = (first + done) % s.output_size[1];
    const int64_t length = std::min(count - done, s.output_size[1] - column);
    const bool strided = !s.transposed;
    segments->push_back({strided ? row * s.strides[0] : row, strided ? column * s.strides[1] : column, length});
    done += length;
  }
}

// A stretch of one tap of a transposed convolution: output pixels whose distance from the tap is a multiple of the
// stride take an input pixel, the others take zero. `centred` has room for the segment.
void gather_transposed(const Conv &conv, const uint8_t *plane, const Segment &segment, int64_t row, int64_t column,
                       int16_t *centred, int16_t *out) {
  const kvant_conv_shape &s = conv.shape;
  std::fill(out, out + segment.length, int16_t{0});
  const int64_t from_row = segment.row - row, from_column = segment.column - column, step = s.strides[1];
  if (from_row < 0 || from_row % s.strides[0] != 0 || from_row / s.strides[0] >= s.size[0]) return;
  const int64_t first = from_column < 0 ? -from_column : (step - from_column % step) % step;
  if (first >= segment.length) return;
  const int64_t at = (from_column + first) / step;
  const int64_t count = std::min((segment.length - 1 - first) / step + 1, s.size[1] - at);
  if (count <= 0) return;
  const uint8_t *from = plane + (from_row / s.strides[0] * s.size[1] + at) * size_of(conv.x.dtype);
  loops().centre16(count, from, conv.x.dtype, 1, conv.x.zero_point, centred);
  for (int64_t i = 0; i < count; ++i) out[first + i * step] = centred[i];
}

void gather_panel_transposed(const Conv &conv, const Taps &taps, const uint8_t *planes,
                             const std::vector<Segment> &segments, int64_t width, int16_t *rows, int16_t *panel) {
  const Depth &depth = conv.weights->depth;
  int16_t *centred = rows + 2 * width;
  std::fill(rows, rows + 2 * width, int16_t{0});
  for (int64_t k = 0; k < 2 * depth.pairs; ++k) {
    int16_t *out = rows + k % 2 * width;
    if (k == depth.count) std::fill(out, out + width, int16_t{0});
    for (size_t i = 0; i < segments.size() && k < depth.count; out += segments[i++].length) {
      const size_t tap = static_cast<size_t>(k);
      gather_transposed(conv, planes + taps.planes[tap] * size_of(conv.x.dtype), segments[i], taps.rows[tap],
                        taps.columns[tap], centred, out);
    }
    if (k % 2 == 1) loops().interleave(width, rows, rows + width, panel + (k - 1) * width);
  }
}

void gather_panel(const Conv &conv, const Taps &taps, const uint8_t *planes, const std::vector<Segment> &segments,
                  int64_t width, int16_t *rows, int16_t *panel) {
  if (conv.shape.transposed) return gather_panel_transposed(conv, taps, planes, segments, width, rows, panel);
  const Depth &depth = conv.weights->depth;
  const Gather gather{&conv.x,         planes,           conv.input(conv.shape.batch, 0),
                      conv.shape.size[0], conv.shape.size[1], conv.shape.strides[1],
                      depth.count,     depth.pairs,      taps.planes.data(),
                      taps.rows.data(), taps.columns.data()};
  loops().gather(gather, segments.data(), static_cast<int64_t>(segments.size()), width, rows, panel);
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

// What one thread works with.
struct Bench {
  int16_t *panel, *rows;
  void *tile;
  std::vector<Segment> segments;
};

void run_item(const Conv &conv, const Taps &taps, const Cut &cut, int64_t item, Bench *bench) {
  const kvant_weights &weights = *conv.weights;
  const int64_t split = item % cut.splits, first = item / cut.splits % cut.panels * cut.width;
  const int64_t group = item / cut.splits / cut.panels % weights.groups;
  const int64_t image = item / cut.splits / cut.panels / weights.groups;
  const int64_t count = std::min(cut.width, conv.pixels() - first);
  const uint8_t *planes = conv.input(image, group * conv.group_channels());
  cut_segments(conv, first, count, &bench->segments);
  gather_panel(conv, taps, planes, bench->segments, cut.width, bench->rows, bench->panel);
  const Finish finish{weights.bias.data(), weights.multipliers.data(), false, false, conv.target};
  const int64_t blocks = static_cast<int64_t>(weights.blocks.size());
  for (int64_t b = blocks * split / cut.splits; b < blocks * (split + 1) / cut.splits; ++b) {
    const RowBlock &rows = weights.blocks[static_cast<size_t>(b)];
    const int64_t channel = group * conv.group_outputs() + rows.first;
    const Block block{rows.rows, rows.used, cut.vectors, count,
                      weights.packed.data() + group * weights.group_size + rows.offset, bench->panel};
    uint8_t *to = conv.output(image, channel) + first * size_of(conv.target.dtype);
    multiply_block(block, weights.depth, finish, channel, 0, bench->tile, to, conv.pixels());
  }
}

int32_t run_dense(const Conv &conv) {
  const Cut pieces = cut(conv);
  const Taps taps(conv);
  return parallel(pieces.items, 1, [&conv, &taps, pieces](int64_t begin, int64_t end) -> int32_t {
    Bench bench{scratch_array<int16_t>(0, 2 * conv.weights->depth.pairs * pieces.width),
                scratch_array<int16_t>(1, 3 * (pieces.width + kSlack)),
                scratch(2, tile_bytes()),
                {}};
    KVANT_REQUIRE(bench.panel && bench.rows && bench.tile, KVANT_NO_MEMORY);
    for (int64_t item = begin; item < end; ++item) run_item(conv, taps, pieces, item, &bench);
    return KVANT_OK;
  });
}

// A plane as the depthwise kernel reads it: with its padding as far as the kernel reaches, each row cut into one
// stretch for every remainder of the column by the stride, so that neighbouring outputs read neighbouring elements.
struct Padded {
  int64_t height, width;  // width: of one stretch
  int64_t row;            // elements of a row, all stretches
  bool dense;             // stride 1: all results are one run over the plane, with what lies between two rows
};

Padded padded_size(const Conv &conv) {
  const kvant_conv_shape &s = conv.shape;
  const int64_t reach = (s.kernel[1] - 1) * s.dilations[1];
  const int64_t width = s.output_size[1] + reach / s.strides[1];
  return {(s.output_size[0] - 1) * s.strides[0] + (s.kernel[0] - 1) * s.dilations[0] + 1, width,
          width * s.strides[1], s.strides[0] == 1 && s.strides[1] == 1};
}

// Columns phase, phase + stride, ... of a padded row, from a row of the plane. What follows them is overwritten.
void pad_stretch(const Conv &conv, const uint8_t *row, int64_t phase, int64_t width, int16_t *to) {
  const int64_t step = conv.shape.strides[1], left = conv.shape.pads[1];
  const int64_t begin = std::min(width, phase >= left ? 0 : divide_up(left - phase, step));
  const int64_t from = phase + begin * step - left;
  const int64_t count = std::clamp<int64_t>(divide_up(conv.shape.size[1] - from, step), 0, width - begin);
  std::fill(to, to + begin, int16_t{0});
  if (count > 0) {
    loops().centre_over(count, row + from * size_of(conv.x.dtype), conv.input(conv.shape.batch, 0), conv.x.dtype, step,
                        conv.x.zero_point, to + begin);
  }
  std::fill(to + begin + count, to + width, int16_t{0});
}

void pad_plane(const Conv &conv, const Padded &padded, const uint8_t *plane, int16_t *out) {
  const int64_t row_bytes = conv.shape.size[1] * size_of(conv.x.dtype);
  for (int64_t row = 0; row < padded.height; ++row) {
    const int64_t from = row - conv.shape.pads[0];
    int16_t *to = out + row * padded.row;
    if (from < 0 || from >= conv.shape.size[0]) {
      std::fill(to, to + padded.row, int16_t{0});
      continue;
    }
    for (int64_t phase = 0; phase < conv.shape.strides[1]; ++phase) {
      pad_stretch(conv, plane + from * row_bytes, phase, padded.width, to + phase * padded.width);
    }
  }
}

// Where each tap of the kernel reads in a padded plane.
void tap_offsets(const Conv &conv, const Padded &padded, int64_t *offsets) {
  const kvant_conv_shape &s = conv.shape;
  for (int64_t i = 0; i < s.kernel[0]; ++i) {
    for (int64_t j = 0; j < s.kernel[1]; ++j) {
      const int64_t column = j * s.dilations[1];
      offsets[i * s.kernel[1] + j] =
          i * s.dilations[0] * padded.row + column % s.strides[1] * padded.width + column / s.strides[1];
    }
  }
}

struct DepthwiseBench {
  int16_t *plane;
  int64_t *offsets;
  uint8_t *results;
};

// One output plane, as one run or as one for each row.
void run_plane(const Conv &conv, const Padded &padded, int64_t image, int64_t channel, const DepthwiseBench &bench) {
  const kvant_conv_shape &s = conv.shape;
  const kvant_weights &weights = *conv.weights;
  const int64_t taps = s.kernel[0] * s.kernel[1], element = size_of(conv.target.dtype);
  const size_t at = static_cast<size_t>(channel);
  const int16_t *own = weights.values.data() + channel * taps;
  const int32_t bias = static_cast<int32_t>(weights.bias[at]);
  const int64_t runs = padded.dense ? 1 : s.output_size[0], rows = s.output_size[0] / runs;
  const int64_t count = (rows - 1) * padded.row + s.output_size[1];
  for (int64_t run = 0; run < runs; ++run) {
    loops().depthwise(count, taps, bench.plane + run * s.strides[0] * padded.row, bench.offsets, own, bias,
                      weights.multipliers[at], &conv.target, bench.results);
    for (int64_t row = 0; row < rows; ++row) {
      uint8_t *to = conv.output(image, channel) + (run * rows + row) * s.output_size[1] * element;
      std::memcpy(to, bench.results + row * padded.row * element, static_cast<size_t>(s.output_size[1] * element));
    }
  }
}

int32_t run_depthwise(const Conv &conv) {
  const Padded padded = padded_size(conv);
  const int64_t outputs = conv.weights->outputs;
  int64_t room, results;
  KVANT_REQUIRE(product({padded.height, padded.row, 2}, &room), KVANT_OVERFLOW);
  KVANT_REQUIRE(product({conv.shape.output_size[0], padded.row, 2}, &results), KVANT_OVERFLOW);
  const int64_t grain = divide_up(4096, std::max<int64_t>(1, conv.pixels()));
  return parallel(conv.shape.batch * outputs, grain, [&](int64_t begin, int64_t end) -> int32_t {
    const DepthwiseBench bench{scratch_array<int16_t>(0, room / 2 + kSlack),
                               scratch_array<int64_t>(1, conv.shape.kernel[0] * conv.shape.kernel[1]),
                               scratch_array<uint8_t>(2, results + 2 * kSlack)};
    KVANT_REQUIRE(bench.plane && bench.offsets && bench.results, KVANT_NO_MEMORY);
    tap_offsets(conv, padded, bench.offsets);
    int64_t ready = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / outputs, channel = item % outputs, source = channel / conv.group_outputs();
      if (image * conv.shape.channels + source != ready) {
        pad_plane(conv, padded, conv.input(image, source), bench.plane);
        ready = image * conv.shape.channels + source;
      }
      run_plane(conv, padded, image, channel, bench);
    }
    return KVANT_OK;
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
  if (!shape->transposed) flatten(&conv.shape);
  try {
    return depthwise && !weights->depth.wide ? run_depthwise(conv) : run_dense(conv);
  } catch (const std::exception &) {
    return KVANT_NO_MEMORY;
  }
}
