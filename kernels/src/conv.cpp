// Convolution: checks, the choice of an algorithm, and the input as that algorithm wants it. A transposed convolution
// is one of the mirrored kernel over pixels that lie `stride` apart.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include "common.h"
#include "conv.h"
#include "loops.h"
#include "packing.h"
#include "padding.h"
#include "threads.h"
#include "transform.h"
#include "winograd.h"

namespace kvant {
namespace {

constexpr int64_t kAddGrain = 1 << 15;  // elements; fewer are not worth a second thread

bool is_late(int32_t method) { return method == KVANT_WINOGRAD_LATE || method == KVANT_TRANSFORM_LATE; }

// The wanted algorithm, or the general one where that cannot be proven exact.
std::unique_ptr<Algorithm> make(const kvant_conv_layer &layer, int32_t method) {
  std::unique_ptr<Algorithm> algorithm;
  const bool late = is_late(method);
  if (method == KVANT_WINOGRAD || method == KVANT_WINOGRAD_LATE) algorithm = make_winograd(layer, late);
  if (method == KVANT_TRANSFORM || method == KVANT_TRANSFORM_LATE) algorithm = make_transform(layer, late);
  if (method == KVANT_XNOR) algorithm = make_xnor(layer);
  if (!algorithm) algorithm = make_depthwise(layer);
  return algorithm ? std::move(algorithm) : make_direct(layer);
}

// What the wanted algorithm keeps, 0 or less where it does not fit the layer.
int64_t bytes_of(const kvant_conv_layer &layer, int32_t method) {
  const int64_t element = layer.dtype == KVANT_UINT8 ? 1 : 2;
  switch (method) {
    case KVANT_WINOGRAD:
    case KVANT_WINOGRAD_LATE:
      return winograd_bytes(layer, is_late(method));
    case KVANT_TRANSFORM:
    case KVANT_TRANSFORM_LATE:
      return transform_bytes(layer, is_late(method));
    case KVANT_XNOR:
      return xnor_bytes(layer);
    default:
      return layer.outputs * (layer.channels / layer.groups) * layer.kernel[0] * layer.kernel[1] * element;
  }
}

int64_t room_of(const kvant_conv_layer &layer, int32_t method) {
  if (method == KVANT_WINOGRAD_LATE) return winograd_bytes(layer, false);
  return method == KVANT_TRANSFORM_LATE ? transform_room(layer) : 0;
}

bool is_size(int64_t value) { return value >= 1 && value <= INT32_MAX; }

int32_t check_layer(const kvant_conv_layer &layer) {
  KVANT_REQUIRE(layer.outputs >= 1 && layer.channels >= 1 && layer.groups >= 1, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(layer.outputs % layer.groups == 0 && layer.channels % layer.groups == 0, KVANT_BAD_ARGUMENT);
  for (int axis = 0; axis < 2; ++axis) {
    KVANT_REQUIRE(is_size(layer.kernel[axis]) && is_size(layer.strides[axis]) && is_size(layer.dilations[axis]),
                  KVANT_BAD_ARGUMENT);
  }
  const kvant_source source{nullptr, layer.dtype, layer.zero_point};
  KVANT_REQUIRE(layer.dtype != KVANT_INT8 && valid(&source), KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(layer.transposed == 0 || layer.transposed == 1, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(!layer.sums.wide || layer.sums.terms >= 2, KVANT_BAD_ARGUMENT);
  int64_t depth, bytes;  // filling up vectors and merging groups takes at most 4096 times the room
  KVANT_REQUIRE(product({layer.channels / layer.groups, layer.kernel[0], layer.kernel[1]}, &depth), KVANT_OVERFLOW);
  KVANT_REQUIRE(product({layer.outputs, depth, 4096}, &bytes), KVANT_OVERFLOW);
  return KVANT_OK;
}

// What a checked layer points to.
int32_t check_values(const kvant_conv_layer &layer) {
  KVANT_REQUIRE(layer.values && layer.bias && layer.multipliers, KVANT_NULL_POINTER);
  const int64_t depth = layer.channels / layer.groups * layer.kernel[0] * layer.kernel[1];
  for (int64_t i = 0; i < layer.outputs * depth; ++i) KVANT_REQUIRE(layer.values[i] != INT16_MIN, KVANT_BAD_ARGUMENT);
  for (int64_t i = 0; i < layer.outputs; ++i) KVANT_REQUIRE(std::isfinite(layer.multipliers[i]), KVANT_BAD_ARGUMENT);
  return KVANT_OK;
}

// The kernel turned by half a turn.
std::vector<int16_t> mirrored(const kvant_conv_layer &layer) {
  const int64_t taps = layer.kernel[0] * layer.kernel[1];
  const int64_t kernels = layer.outputs * (layer.channels / layer.groups);
  std::vector<int16_t> values(layer.values, layer.values + kernels * taps);
  for (int64_t i = 0; i < kernels; ++i) std::reverse(values.begin() + i * taps, values.begin() + (i + 1) * taps);
  return values;
}

std::unique_ptr<kvant_weights> prepare(const kvant_conv_layer &layer, int32_t method) {
  auto weights = std::make_unique<kvant_weights>();
  weights->layer = without_pointers(layer);
  if (!layer.transposed) {
    weights->algorithm = make(layer, method);
    return weights;
  }
  const std::vector<int16_t> values = mirrored(layer);
  kvant_conv_layer dense = layer;
  dense.values = values.data();
  dense.transposed = 0;
  dense.strides[0] = dense.strides[1] = 1;
  weights->algorithm = make(dense, KVANT_DIRECT);
  return weights;
}

// A 1x1 kernel that touches every pixel sees one long row.
void flatten(const kvant_conv_layer &layer, kvant_conv_shape *shape) {
  for (int axis = 0; axis < 2; ++axis) {
    if (layer.kernel[axis] != 1 || layer.strides[axis] != 1 || shape->pads[axis] != 0 ||
        shape->size[axis] != shape->output_size[axis]) {
      return;
    }
  }
  shape->size[1] *= shape->size[0] * shape->batch;
  shape->output_size[1] = shape->size[1];
  shape->batch = shape->size[0] = shape->output_size[0] = 1;
}

Placement placement_of(const kvant_conv_layer &layer, const kvant_conv_shape &shape, const void *x) {
  Placement placement{};
  placement.x = static_cast<const uint8_t *>(x);
  placement.dtype = layer.dtype;
  placement.zero_point = layer.zero_point;
  placement.batch = shape.batch;
  placement.channels = layer.channels;
  placement.x_stride = shape.x_stride;
  for (int axis = 0; axis < 2; ++axis) {
    placement.size[axis] = shape.size[axis];
    placement.step[axis] = layer.transposed ? layer.strides[axis] : 1;
    const int64_t reach = (layer.kernel[axis] - 1) * layer.dilations[axis];
    placement.pads[axis] = layer.transposed ? reach - shape.pads[axis] : shape.pads[axis];
  }
  return placement;
}

// Added to what was written, a pixel at a time.
int32_t add(const Job &job, int64_t outputs) {
  const kvant_addend &addend = *job.addend;
  const Operands operands{job.target.zero_point, addend.zero_point, addend.multiplier, addend.added_multiplier};
  const int64_t size = size_of(job.target.dtype), pixels = job.batch * job.output_size[0] * job.output_size[1];
  const uint8_t *added = static_cast<const uint8_t *>(addend.data);
  return parallel(pixels, divide_up(kAddGrain, outputs), [=, &addend](int64_t begin, int64_t end) -> int32_t {
    for (int64_t p = begin; p < end; ++p) {
      uint8_t *y = job.y + p * job.y_stride * size;
      loops().binary_alike(false, outputs, y, added + p * outputs * size, operands, &addend.target, y);
    }
    return KVANT_OK;
  });
}

int32_t run(const kvant_weights &weights, kvant_conv_shape shape, const void *x, const kvant_target &target,
            const kvant_addend *addend, void *y) {
  flatten(weights.layer, &shape);
  Job job{};
  int32_t status = make_job(weights, shape, x, &job);
  KVANT_REQUIRE(status == KVANT_OK, status);
  job.target = target;
  job.addend = addend;
  job.y = static_cast<uint8_t *>(y);
  job.y_stride = shape.y_stride;
  status = weights.algorithm->run(job);
  if (status != KVANT_OK || addend == nullptr || weights.algorithm->adds_itself()) return status;
  return add(job, weights.layer.outputs);
}

}  // namespace

int32_t check_shape(const kvant_conv_shape &shape, const kvant_conv_layer &layer) {
  for (int axis = 0; axis < 2; ++axis) {
    KVANT_REQUIRE(is_size(shape.size[axis]) && is_size(shape.output_size[axis]), KVANT_BAD_ARGUMENT);
    KVANT_REQUIRE(shape.pads[axis] >= 0 && shape.pads[axis] <= INT32_MAX, KVANT_BAD_ARGUMENT);
  }
  KVANT_REQUIRE(shape.batch >= 0 && shape.x_stride >= layer.channels && shape.y_stride >= layer.outputs,
                KVANT_BAD_ARGUMENT);
  int64_t bytes;
  KVANT_REQUIRE(product({shape.batch, shape.size[0], shape.size[1], shape.x_stride, 64}, &bytes), KVANT_OVERFLOW);
  KVANT_REQUIRE(product({shape.batch, shape.output_size[0], shape.output_size[1], shape.y_stride, 64}, &bytes),
                KVANT_OVERFLOW);
  for (int axis = 0; axis < 2; ++axis) {  // as far as the input is read, of all pixels before the stride
    int64_t stride, kernel;
    KVANT_REQUIRE(product({shape.output_size[axis], layer.strides[axis], 4}, &stride), KVANT_OVERFLOW);
    KVANT_REQUIRE(product({layer.kernel[axis], layer.dilations[axis], 4}, &kernel), KVANT_OVERFLOW);
  }
  return KVANT_OK;
}

bool valid(const kvant_addend *addend, const kvant_target &target) {
  if (addend == nullptr) return true;
  const kvant_source source{addend->data, target.dtype, addend->zero_point};
  return addend->data != nullptr && valid(&source) && valid(&addend->target) && addend->target.dtype == target.dtype &&
         std::isfinite(addend->multiplier) && std::isfinite(addend->added_multiplier);
}

bool is_small(const kvant_addend *addend) {
  return addend == nullptr || std::max(std::abs(addend->multiplier), std::abs(addend->added_multiplier)) < 8192.0f;
}

int32_t make_job(const kvant_weights &weights, const kvant_conv_shape &shape, const void *x, Job *job) {
  const Algorithm &algorithm = *weights.algorithm;
  const Placement placement = placement_of(weights.layer, shape, x);
  job->batch = shape.batch;
  std::copy_n(shape.output_size, 2, job->output_size);
  if (algorithm.pads_itself() && is_plain(placement)) {
    job->x = as_it_lies(placement);
    std::copy_n(placement.size, 2, job->size);
    std::copy_n(placement.pads, 2, job->pads);
    return KVANT_OK;
  }
  // A row of the kernel is one run of elements, so that pixels must not lie further apart.
  const bool dense = shape.x_stride == weights.layer.channels || weights.layer.kernel[1] == 1;
  const Reach reach = algorithm.reach(shape.output_size);
  job->size[0] = reach.rows;
  job->size[1] = reach.columns;
  return place(placement, algorithm.format(), reach, dense, &job->x);
}

}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_conv_bytes(const kvant_conv_layer *layer, int32_t method, int64_t *bytes) {
  KVANT_REQUIRE(layer && bytes, KVANT_NULL_POINTER);
  KVANT_REQUIRE(method >= KVANT_DIRECT && method <= KVANT_TRANSFORM_LATE, KVANT_BAD_ARGUMENT);
  const int32_t status = check_layer(*layer);
  KVANT_REQUIRE(status == KVANT_OK, status);
  *bytes = bytes_of(*layer, method);
  if (*bytes <= 0) *bytes = -1;
  return KVANT_OK;
}

extern "C" int32_t kvant_conv_room(const kvant_conv_layer *layer, int32_t method, int64_t *bytes) {
  KVANT_REQUIRE(layer && bytes, KVANT_NULL_POINTER);
  KVANT_REQUIRE(method >= KVANT_DIRECT && method <= KVANT_TRANSFORM_LATE, KVANT_BAD_ARGUMENT);
  const int32_t status = check_layer(*layer);
  KVANT_REQUIRE(status == KVANT_OK, status);
  *bytes = room_of(*layer, method);
  return KVANT_OK;
}

extern "C" int32_t kvant_pack_conv(const kvant_conv_layer *layer, int32_t method, kvant_weights **packed) {
  KVANT_REQUIRE(layer && packed, KVANT_NULL_POINTER);
  KVANT_REQUIRE(method >= KVANT_DIRECT && method <= KVANT_TRANSFORM_LATE, KVANT_BAD_ARGUMENT);
  int32_t status = check_layer(*layer);
  KVANT_REQUIRE(status == KVANT_OK, status);
  status = check_values(*layer);
  KVANT_REQUIRE(status == KVANT_OK, status);
  try {
    *packed = prepare(*layer, method).release();
  } catch (const std::exception &) {
    return KVANT_NO_MEMORY;
  }
  return KVANT_OK;
}

extern "C" void kvant_free_weights(kvant_weights *packed) { delete packed; }

extern "C" const char *kvant_algorithm(const kvant_weights *packed) {
  return packed == nullptr ? "" : packed->algorithm->name();
}

extern "C" int64_t kvant_weights_bytes(const kvant_weights *packed) {
  return packed == nullptr ? 0 : packed->algorithm->bytes();
}

extern "C" int32_t kvant_conv(const kvant_conv_shape *shape, const kvant_weights *weights, const void *x,
                              const kvant_target *target, const kvant_addend *addend, void *y) {
  KVANT_REQUIRE(shape && weights && x && target && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(valid(target) && valid(addend, *target), KVANT_BAD_ARGUMENT);
  const int32_t status = check_shape(*shape, weights->layer);
  KVANT_REQUIRE(status == KVANT_OK, status);
  if (shape->batch == 0) return KVANT_OK;
  try {
    return run(*weights, *shape, x, *target, addend, y);
  } catch (const std::exception &) {
    return KVANT_NO_MEMORY;
  }
}
