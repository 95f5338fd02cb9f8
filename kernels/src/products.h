// Products of packed rows and columns.
#pragma once

#include <cstdint>
#include <vector>

#include "common.h"
#include "loops.h"

namespace kvant {

// How a sum is taken: pairs of products, in stretches that surely stay within int32.
struct Depth {
  int64_t count;    // products of one sum
  int64_t pairs;    // of them, the last one filled up with zero
  int64_t stretch;  // pairs that int32 surely holds
  bool wide;        // whole sums may leave int32
};

// False unless `terms` is at least 2: a pair must fit.
bool depth_of(int64_t count, const kvant_sums &sums, Depth *depth);

// The rows of the next block where `left` remain: a power of two up to loops().rows.
int64_t block_rows(int64_t left);
// A block of consecutive rows: `used` of `rows` are real.
struct RowBlock {
  int64_t first;
  int64_t rows;
  int64_t used;
  int64_t offset;  // of its packed values
};
std::vector<RowBlock> row_blocks(int64_t count, int64_t pairs);

// Columns of a panel: as many vectors as loops().vectors allows, spread evenly over the panels that `count` needs.
int64_t panel_vectors(int64_t count);

// Rows of integers as block[pair][row][2]: `present` of `rows` rows are given, 2 * pairs integers each, one after the
// other; the missing ones become zero.
void pack_block(int64_t rows, int64_t present, int64_t pairs, const int16_t *values, int16_t *block);

// Room that `multiply_block` needs, in bytes.
int64_t tile_bytes();

// One block of rows times one panel of columns, requantized into y: row r at y + r * stride elements.
struct Block {
  int64_t rows;       // that block holds
  int64_t used_rows;  // of them, those that are written
  int64_t vectors;
  int64_t used_columns;
  const int16_t *a;
  const int16_t *v;
};

void multiply_block(const Block &block, const Depth &depth, const Finish &finish, void *tile, uint8_t *y,
                    int64_t stride);

}  // namespace kvant
