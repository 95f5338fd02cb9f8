#include "products.h"

#include <algorithm>
#include <cstring>

namespace kvant {

bool depth_of(int64_t count, const kvant_sums &sums, Depth *depth) {
  if (count < 1 || sums.terms < 2 || count > INT64_MAX / 64) return false;
  *depth = {count, divide_up(count, 2), std::min(divide_up(count, 2), sums.terms / 2), sums.wide != 0};
  return true;
}

int64_t block_rows(int64_t left) {
  int64_t rows = 1;
  while (rows < left && rows < loops().rows) rows *= 2;
  return rows;
}

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

int64_t panel_vectors(int64_t count) {
  const int64_t vectors = divide_up(count, loops().lanes);
  return std::max<int64_t>(1, divide_up(vectors, divide_up(vectors, loops().vectors)));
}

void pack_block(int64_t rows, int64_t present, int64_t pairs, const int16_t *values, int16_t *block) {
  constexpr int64_t kTile = 16;  // pairs: a row of them is a cache line, and so many rows of the block stay near
  for (int64_t first = 0; first < pairs; first += kTile) {
    const int64_t last = std::min(pairs, first + kTile);
    for (int64_t r = 0; r < present; ++r) {
      for (int64_t p = first; p < last; ++p) std::memcpy(block + 2 * (p * rows + r), values + 2 * (r * pairs + p), 4);
    }
    for (int64_t r = present; r < rows; ++r) {
      for (int64_t p = first; p < last; ++p) std::memset(block + 2 * (p * rows + r), 0, 4);
    }
  }
}

int64_t tile_bytes() {
  // A tile of narrow sums and one of wide ones.
  return loops().rows * loops().lanes * loops().vectors * static_cast<int64_t>(sizeof(int32_t) + sizeof(int64_t));
}

namespace {

// Sums of one stretch after the other: int32 within a stretch, int64 across them.
void multiply_wide(const Block &block, const Depth &depth, int32_t *tile, int64_t *wide) {
  const int64_t width = block.vectors * loops().lanes, count = block.rows * width;
  std::fill(wide, wide + count, 0);
  for (int64_t first = 0; first < depth.pairs; first += depth.stretch) {
    const int64_t pairs = std::min(depth.stretch, depth.pairs - first);
    loops().multiply(block.rows, block.vectors, pairs, block.a + first * block.rows * 2, block.v + first * width * 2,
                     tile);
    loops().widen_add(count, tile, wide);
  }
}

}  // namespace

void multiply_block(const Block &block, const Depth &depth, const Finish &finish, void *tile, uint8_t *y,
                    int64_t stride) {
  const int64_t width = block.vectors * loops().lanes;
  const Tile result{block.used_rows, block.used_columns, width, y, stride * size_of(finish.target.dtype)};
  int32_t *narrow = static_cast<int32_t *>(tile);
  int64_t *wide = reinterpret_cast<int64_t *>(narrow + loops().rows * loops().lanes * loops().vectors);
  if (depth.wide) {
    multiply_wide(block, depth, narrow, wide);
    loops().finish64(finish, result, wide);
  } else {
    loops().multiply(block.rows, block.vectors, depth.pairs, block.a, block.v, narrow);
    loops().finish32(finish, result, narrow);
  }
}

}  // namespace kvant
