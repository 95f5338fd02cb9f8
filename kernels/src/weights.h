// Weights prepared for the machine's tile.
#pragma once

#include <vector>

#include "products.h"

namespace kvant {

// A block of consecutive rows of one group: `used` of `rows` are real.
struct RowBlock {
  int64_t first;
  int64_t rows;
  int64_t used;
  int64_t offset;  // of its packed values within the group's
};

std::vector<RowBlock> row_blocks(int64_t count, int64_t pairs);

}  // namespace kvant

struct kvant_weights {
  bool linear;
  int64_t outputs;
  int64_t groups;
  kvant::Depth depth;
  std::vector<int64_t> bias;
  std::vector<float> multipliers;
  std::vector<int16_t> packed;           // convolution: blocks of rows; linear: panels of columns
  std::vector<kvant::RowBlock> blocks;   // convolution: of one group
  int64_t group_size = 0;                // convolution: packed integers of one group
  int64_t vectors = 0;                   // linear: of one panel
  std::vector<int16_t> values;           // convolution of several groups: as given, for the depthwise kernel
};
