#include "weights.h"

#include <algorithm>
#include <exception>
#include <memory>

namespace kvant {

std::vector<RowBlock> row_blocks(int64_t count, int64_t pairs) {
  std::vector<RowBlock> blocks;
  int64_t offset = 0;
  for (int64_t first = 0; first < count;) {
    const int64_t rows = block_rows(count - first), used = std::min(rows, count - first);
    blocks.push_back({first, rows, used, offset});
    offset += 2 * rows * pairs;
    first += used;
  }
  return blocks;
}

namespace {

int32_t check(int64_t outputs, int64_t depth, int64_t groups, const int16_t *values, const int64_t *bias,
              const float *multipliers, const kvant_sums *sums, kvant_weights **packed) {
  KVANT_REQUIRE(values && bias && multipliers && sums && packed, KVANT_NULL_POINTER);
  KVANT_REQUIRE(outputs >= 1 && groups >= 1 && outputs % groups == 0, KVANT_BAD_ARGUMENT);
  Depth checked;
  KVANT_REQUIRE(depth_of(depth, *sums, &checked), KVANT_BAD_ARGUMENT);
  int64_t bytes;  // padding to whole tiles takes at most 64 times the room
  KVANT_REQUIRE(product({outputs, depth + 1, 64}, &bytes), KVANT_OVERFLOW);
  return KVANT_OK;
}

std::unique_ptr<kvant_weights> describe(int64_t outputs, int64_t depth, int64_t groups, const int64_t *bias,
                                        const float *multipliers, const kvant_sums *sums) {
  auto weights = std::make_unique<kvant_weights>();
  weights->outputs = outputs;
  weights->groups = groups;
  depth_of(depth, *sums, &weights->depth);
  weights->bias.assign(bias, bias + outputs);
  weights->multipliers.assign(multipliers, multipliers + outputs);
  return weights;
}

// Rows `first` to `first + count` of the values, each filled up to whole pairs.
std::vector<int16_t> padded_rows(const Depth &depth, const int16_t *values, int64_t first, int64_t count) {
  std::vector<int16_t> rows(static_cast<size_t>(2 * depth.pairs * count));
  for (int64_t r = 0; r < count; ++r) {
    const int16_t *from = values + (first + r) * depth.count;
    std::copy(from, from + depth.count, rows.begin() + 2 * depth.pairs * r);
  }
  return rows;
}

void pack_rows(kvant_weights &weights, const int16_t *values) {
  const int64_t per_group = weights.outputs / weights.groups;
  weights.blocks = row_blocks(per_group, weights.depth.pairs);
  const RowBlock &last = weights.blocks.back();
  weights.group_size = last.offset + 2 * last.rows * weights.depth.pairs;
  weights.packed.resize(static_cast<size_t>(weights.group_size * weights.groups));
  for (int64_t g = 0; g < weights.groups; ++g) {
    for (const RowBlock &block : weights.blocks) {
      const auto rows = padded_rows(weights.depth, values, g * per_group + block.first, block.used);
      pack_block(block.rows, block.used, weights.depth.pairs, rows.data(),
                 weights.packed.data() + g * weights.group_size + block.offset);
    }
  }
}

// Columns are packed as rows are: panel[pair][column][2].
void pack_columns(kvant_weights &weights, const int16_t *values) {
  weights.vectors = panel_vectors(weights.outputs);
  const int64_t width = weights.vectors * loops().lanes, panels = divide_up(weights.outputs, width);
  const int64_t panel_size = 2 * width * weights.depth.pairs;
  weights.packed.resize(static_cast<size_t>(panels * panel_size));
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t used = std::min(width, weights.outputs - p * width);
    const auto rows = padded_rows(weights.depth, values, p * width, used);
    pack_block(width, used, weights.depth.pairs, rows.data(), weights.packed.data() + p * panel_size);
  }
}

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_pack_conv(int64_t outputs, int64_t depth, int64_t groups, const int16_t *values,
                                   const int64_t *bias, const float *multipliers, const kvant_sums *sums,
                                   kvant_weights **packed) {
  const int32_t status = check(outputs, depth, groups, values, bias, multipliers, sums, packed);
  KVANT_REQUIRE(status == KVANT_OK, status);
  try {
    auto weights = describe(outputs, depth, groups, bias, multipliers, sums);
    pack_rows(*weights, values);
    if (groups > 1) weights->values.assign(values, values + outputs * depth);
    *packed = weights.release();
  } catch (const std::exception &) {
    return KVANT_NO_MEMORY;
  }
  return KVANT_OK;
}

extern "C" int32_t kvant_pack_linear(int64_t outputs, int64_t depth, const int16_t *values, const int64_t *bias,
                                     const float *multipliers, const kvant_sums *sums, kvant_weights **packed) {
  const int32_t status = check(outputs, depth, 1, values, bias, multipliers, sums, packed);
  KVANT_REQUIRE(status == KVANT_OK, status);
  try {
    auto weights = describe(outputs, depth, 1, bias, multipliers, sums);
    weights->linear = true;
    pack_columns(*weights, values);
    *packed = weights.release();
  } catch (const std::exception &) {
    return KVANT_NO_MEMORY;
  }
  return KVANT_OK;
}

extern "C" void kvant_free_weights(kvant_weights *packed) { delete packed; }
