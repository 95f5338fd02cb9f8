// Exact Winograd convolution F(4x4, 3x3): what its inner loops, one set for each instruction set, do.
//
// A tile is 4 x 4 output pixels and the 6 x 6 input pixels that they see. Both are transformed to 36 points; at each of
// them, a matrix (tiles x channels) meets a matrix (channels x outputs). A tile at the image's edge that has two rows or
// less of output is F(2, 3) in that direction: it needs only the points 0, 1, -1 and infinity, whose weights are the same,
// and not 2 and -2; likewise columns.
#pragma once

#include <cstdint>

#include "kvant.h"

namespace kvant {

constexpr int64_t kWinogradPoints = 36;
constexpr int64_t kWinogradBlock = 64;     // outputs that are computed together
constexpr int64_t kWinogradStep = 16;      // a block's width is a multiple of this
constexpr int64_t kWinogradChannels = 32;  // channels are padded to a multiple of this
constexpr int64_t kWinogradPadding = 32;   // elements, against planes that fall into the same cache sets

// Where a tile's input begins: image and pixel, which may lie outside; where its output goes, what is added to it, and how
// much of that exists.
struct WinogradTile {
  const uint8_t *image;
  int64_t top, left;
  uint8_t *y;
  const uint8_t *added;
  int64_t rows, columns;
};

// A block's tiles: first those that are low, then those that are neither, those that are narrow, and those that are both.
// Points that low, narrow or both kinds of tiles do not have are then those of a stretch of tiles.
struct WinogradTiles {
  int64_t low, full, narrow, both;
};

// points[point][tile][channel] times weights[point][panel][pair of channels][output][2] is sums[point][tile][output]
// modulo 2^32, each of the tiles' rows of sums with room for a whole block.
struct WinogradProducts {
  WinogradTiles tiles;
  int64_t channels, outputs;  // padded
  const int16_t *points;
  int64_t points_plane;  // elements from point to point
  const int16_t *weights;
  int64_t weights_plane;
  const int16_t *next_weights;  // of the next block, to be fetched early
  int32_t *sums;
  int64_t sums_plane;
};

// What becomes of a block's sums. Distances in y and in what is added (if anything is) are in bytes.
struct WinogradFinish {
  const int32_t *sums;
  int64_t sums_plane;
  const int32_t *bias;       // of the block's outputs, with the zero point's share; padded
  const float *multipliers;  // padded
  int64_t outputs;           // that exist
  kvant_target target;
  int64_t row, column;
  const kvant_addend *addend;
  int64_t added_row, added_column;
  bool bounded;  // nothing reaches 2^31 before it is rounded
};

// Transform so many vectors of weights, of some outputs and two channels each: [vector][tap][output][2] within -128..127
// to points[point * plane + vector][output][2].
struct WinogradKernels {
  const int8_t *weights;
  int64_t vectors;
  int16_t *points;
  int64_t plane;
};

struct WinogradLoops {
  int64_t panel;   // most outputs of a panel of weights
  int64_t vector;  // outputs of a vector of weights
  void (*kernels)(const WinogradKernels &kernels);
  // Transform a tile that sees x: points[point * plane + channel]. Reads whole groups of kWinogradChannels.
  void (*transform)(const WinogradTile &tile, const uint8_t *x, int64_t row, int64_t column, int64_t channels,
                    int16_t *points, int64_t plane);
  void (*multiply)(const WinogradProducts &products);
  void (*finish)(const WinogradFinish &finish, const WinogradTile *tiles, const WinogradTiles &counts);
};

// Bytes of packed weights; 0 where the algorithm does not apply to layers of this shape.
int64_t winograd_bytes(const kvant_conv_layer &layer, bool late);

}  // namespace kvant
