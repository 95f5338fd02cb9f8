// Inner loops for any processor: C++ and the vectors that GCC and Clang have everywhere.
#include "loops.h"

#define KVANT_ISA portable

namespace kvant {
namespace portable {
namespace {

constexpr int64_t kRows = 4;
constexpr int64_t kLanes = 4;
constexpr int64_t kVectors = 2;
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

// The first and the second integers of as many pairs, each widened to 32 bits.
inline void split_pairs(const int16_t *from, Ints *first, Ints *second) {
  Ints pairs;
  __builtin_memcpy(&pairs, from, sizeof pairs);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  *first = (pairs << 16) >> 16;
  *second = pairs >> 16;
#else
  *first = pairs >> 16;
  *second = (pairs << 16) >> 16;
#endif
}

template <int64_t R, int64_t V>
void tile_of(int64_t pairs, const int16_t *a, const int16_t *v, int32_t *tile) {
  Ints sums[R][V] = {};
  for (int64_t p = 0; p < pairs; ++p, a += 2 * R, v += 2 * V * kLanes) {
    for (int64_t c = 0; c < V; ++c) {
      Ints first, second;
      split_pairs(v + 2 * c * kLanes, &first, &second);
      for (int64_t r = 0; r < R; ++r) sums[r][c] += first * a[2 * r] + second * a[2 * r + 1];
    }
  }
  __builtin_memcpy(tile, sums, sizeof sums);
}

template <int64_t R>
void rows_of(int64_t vectors, int64_t pairs, const int16_t *a, const int16_t *v, int32_t *tile) {
  if (vectors == 1) return tile_of<R, 1>(pairs, a, v, tile);
  tile_of<R, 2>(pairs, a, v, tile);
}

void multiply(int64_t rows, int64_t vectors, int64_t pairs, const int16_t *a, const int16_t *v, int32_t *tile) {
  if (rows == 1) return rows_of<1>(vectors, pairs, a, v, tile);
  if (rows == 2) return rows_of<2>(vectors, pairs, a, v, tile);
  rows_of<4>(vectors, pairs, a, v, tile);
}

bool has_tables_of_bytes() { return false; }

int64_t table_of_bytes(int64_t, const uint8_t *, uint8_t, const uint8_t *, uint8_t *) { return 0; }

}  // namespace
}  // namespace portable
}  // namespace kvant

#include "loops_body.h"
