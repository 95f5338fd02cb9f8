// A layer's weights as the direct loops want them: in blocks of outputs.
#pragma once

#include <cstdint>
#include <vector>

#include "direct.h"
#include "kvant.h"
#include "packing.h"

namespace kvant {

const DirectLoops &direct_loops();  // of the instruction set that is used

// Consecutive outputs of one (merged) group.
struct DirectBlock {
  int64_t first_output, outputs, vectors;
  int64_t first_channel;
  int64_t weights;  // offset, bytes
  int64_t lanes;    // offset of its first bias
};

class DirectWeights {
 public:
  explicit DirectWeights(const kvant_conv_layer &layer);

  int64_t size() const { return weights.bytes() + bias.bytes() + multipliers.bytes(); }  // in bytes
  int64_t elements() const { return bytes ? 4 : 2; }                                     // of a group
  int64_t products_of_vector() const { return runs * groups * elements() * direct_loops().lanes; }  // of a pixel
  int64_t values_of(const DirectBlock &block) const { return products_of_vector() * block.vectors; }
  int64_t stored_bytes(const DirectBlock &block) const { return values_of(block) * stored_size(); }

  bool bytes;           // uint8 meets int8
  bool stores_bytes;    // weights are kept as int8
  int64_t merged;       // groups that are one
  int64_t channels;     // of them together
  bool rows;            // a run is a row of the kernel rather than one tap
  int64_t runs, groups;  // groups of elements of a run
  bool bounded = true;  // no product of an int32 and a multiplier reaches 2^31
  int64_t stretch = 1;  // of wide sums: groups that int32 surely holds
  std::vector<DirectBlock> blocks;
  AlignedArray<uint8_t> weights;
  AlignedArray<int64_t> bias;
  AlignedArray<int32_t> narrow_bias;
  AlignedArray<float> multipliers;

 private:
  int64_t stored_size() const { return stores_bytes ? 1 : 2; }
  int64_t depth() const { return layer_.channels / layer_.groups; }
  void cut_blocks();
  void pack(const kvant_conv_layer &layer);
  void pack_output(const kvant_conv_layer &layer, const DirectBlock &block, int64_t index);
  template <typename Stored, int64_t kElements>
  void pack_block(const kvant_conv_layer &layer, const DirectBlock &block);
  void fold(const kvant_conv_layer &layer, const DirectBlock &block, int64_t index, int64_t sum);
  bool holds(int64_t length) const;
  int64_t stored(const DirectBlock &block, int64_t place) const;
  int64_t longest_stretch() const;

  kvant_conv_layer layer_;  // pointers are null
};

}  // namespace kvant
