// Matrix products: groups of rows are packed once and multiplied by panel after panel of columns.
#include <algorithm>
#include <exception>
#include <vector>

#include "products.h"
#include "threads.h"

namespace kvant {
namespace {

// Rows that are packed together: they stay in the second-level cache while the columns pass.
constexpr int64_t kGroup = 128;

const uint8_t *at(const kvant_source &x, int64_t index) {
  return static_cast<const uint8_t *>(x.data) + index * size_of(x.dtype);
}

// Rows of x, packed block after block. `row` has room for loops().rows rows of whole pairs.
void pack_rows(const kvant_source &x, int64_t first, const std::vector<RowBlock> &blocks, const Depth &depth,
               int16_t *row, int16_t *packed) {
  for (const RowBlock &block : blocks) {
    for (int64_t r = 0; r < block.used; ++r) {
      int16_t *to = row + 2 * depth.pairs * r;
      to[2 * depth.pairs - 1] = 0;
      loops().centre16(depth.count, at(x, (first + block.first + r) * depth.count), x.dtype, 1, x.zero_point, to);
    }
    pack_block(block.rows, block.used, depth.pairs, row, packed + block.offset);
  }
}

struct Output {
  const Finish *finish;
  int64_t columns;  // of the whole result
  int64_t vectors;  // of a panel
  uint8_t *y;       // the group's first row
};

void multiply_panel(const std::vector<RowBlock> &blocks, const Depth &depth, const Output &output, int64_t panel,
                    const int16_t *a, const int16_t *v, void *tile) {
  const int64_t width = output.vectors * loops().lanes, column = panel * width;
  const int64_t element = size_of(output.finish->target.dtype);
  for (const RowBlock &rows : blocks) {
    const Block block{rows.rows, rows.used, output.vectors, std::min(width, output.columns - column),
                      a + rows.offset, v};
    uint8_t *to = output.y + (rows.first * output.columns + column) * element;
    multiply_block(block, depth, *output.finish, tile, to, output.columns);
  }
}

struct Room {
  int16_t *packed, *rows;
  void *tile;
};

bool get_room(const Depth &depth, Room *room) {
  const int64_t groups = round_up(kGroup, loops().rows);
  room->packed = scratch_array<int16_t>(0, 2 * groups * depth.pairs);
  room->rows = scratch_array<int16_t>(1, 2 * loops().rows * depth.pairs);
  room->tile = scratch(2, tile_bytes());
  return room->packed && room->rows && room->tile;
}

struct MatMul {
  int64_t m, k, n, count;
  const int64_t *index_a, *index_b;
  kvant_source a, b;
  kvant_target target;
  uint8_t *y;
};

// Columns `first` to `first + count` of one matrix b, as panel[pair][column][2].
void pack_panel(const MatMul &product, const Depth &depth, int64_t matrix, int64_t first, int64_t count, int64_t width,
                int16_t *rows, int16_t *panel) {
  std::fill(rows, rows + 2 * width, int16_t{0});
  for (int64_t p = 0; p < depth.pairs; ++p) {
    for (int64_t side = 0; side < 2; ++side) {
      const int64_t k = 2 * p + side;
      int16_t *to = rows + side * width;
      if (k == depth.count) {
        std::fill(to, to + width, int16_t{0});
      } else {
        loops().centre16(count, at(product.b, (matrix * product.k + k) * product.n + first), product.b.dtype, 1,
                         product.b.zero_point, to);
      }
    }
    loops().interleave(width, rows, rows + width, panel + 2 * p * width);
  }
}

int32_t run_packed(const MatMul &product, const Depth &depth, const Finish &finish) {
  const int64_t vectors = panel_vectors(product.n), width = vectors * loops().lanes;
  const int64_t panels = divide_up(product.n, width), groups = divide_up(product.m, kGroup);
  return parallel(product.count * groups, 1, [&](int64_t begin, int64_t end) -> int32_t {
    Room room;
    int16_t *panel = scratch_array<int16_t>(3, 2 * width * (depth.pairs + 1));
    KVANT_REQUIRE(get_room(depth, &room) && panel, KVANT_NO_MEMORY);
    int16_t *pair = panel + 2 * width * depth.pairs;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t which = item / groups, first = item % groups * kGroup;
      const auto blocks = row_blocks(std::min(kGroup, product.m - first), depth.pairs);
      pack_rows(product.a, product.index_a[which] * product.m + first, blocks, depth, room.rows, room.packed);
      const Output output{&finish, product.n, vectors,
                          product.y + (which * product.m + first) * product.n * size_of(product.target.dtype)};
      for (int64_t p = 0; p < panels; ++p) {
        pack_panel(product, depth, product.index_b[which], p * width, std::min(width, product.n - p * width), width,
                   pair, panel);
        multiply_panel(blocks, depth, output, p, room.packed, panel, room.tile);
      }
    }
    return KVANT_OK;
  });
}

// Two 16-bit operands: a pair of products may leave int32, so sums are taken in int64, one by one.
int32_t run_plain(const MatMul &product, const Finish &finish) {
  return parallel(product.count * product.m, 4, [&](int64_t begin, int64_t end) -> int32_t {
    int64_t *sums = scratch_array<int64_t>(0, product.n);
    int32_t *a = scratch_array<int32_t>(1, product.k), *b = scratch_array<int32_t>(2, product.n);
    KVANT_REQUIRE(sums && a && b, KVANT_NO_MEMORY);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t which = row / product.m;
      const int64_t row_a = product.index_a[which] * product.m + row % product.m;
      loops().centre32(product.k, at(product.a, row_a * product.k), product.a.dtype, 1, product.a.zero_point, a);
      std::fill(sums, sums + product.n, 0);
      for (int64_t k = 0; k < product.k; ++k) {
        const int64_t row_b = product.index_b[which] * product.k + k;
        loops().centre32(product.n, at(product.b, row_b * product.n), product.b.dtype, 1, product.b.zero_point, b);
        for (int64_t j = 0; j < product.n; ++j) sums[j] += static_cast<int64_t>(a[k]) * b[j];
      }
      loops().settle64(product.n, sums, finish.multiplier, &product.target,
                       product.y + row * product.n * size_of(product.target.dtype));
    }
    return KVANT_OK;
  });
}

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_matmul(int64_t m, int64_t k, int64_t n, int64_t count, const int64_t *index_a,
                                const int64_t *index_b, const kvant_source *a, const kvant_source *b, float multiplier,
                                const kvant_sums *sums, const kvant_target *target, void *y) {
  KVANT_REQUIRE(index_a && index_b && a && a->data && b && b->data && sums && target && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(m >= 1 && k >= 1 && n >= 1 && count >= 0, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(valid(a) && valid(b) && valid(target), KVANT_BAD_ARGUMENT);
  int64_t size_a, size_b, size_y;
  KVANT_REQUIRE(product({count, m, k, 64}, &size_a) && product({count, k, n, 64}, &size_b), KVANT_OVERFLOW);
  KVANT_REQUIRE(product({count, m, n, 64}, &size_y), KVANT_OVERFLOW);
  for (int64_t i = 0; i < count; ++i) KVANT_REQUIRE(index_a[i] >= 0 && index_b[i] >= 0, KVANT_BAD_ARGUMENT);
  const MatMul job{m, k, n, count, index_a, index_b, *a, *b, *target, static_cast<uint8_t *>(y)};
  const Finish finish{multiplier, *target};
  Depth depth;
  try {
    return depth_of(k, *sums, &depth) ? run_packed(job, depth, finish) : run_plain(job, finish);
  } catch (const std::exception &) {
    return KVANT_NO_MEMORY;
  }
}
