// Inner loops in plain C++, for any processor.
#include "loops.h"

#define KVANT_ISA portable

namespace kvant {
namespace portable {
namespace {

constexpr char kName[] = "portable";
constexpr int64_t kRows = 4;
constexpr int64_t kLanes = 8;
constexpr int64_t kVectors = 2;
typedef int16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

inline Ints widen(const int16_t *from) {
  Shorts values;
  __builtin_memcpy(&values, from, sizeof values);
  return __builtin_convertvector(values, Ints);
}

template <int64_t R, int64_t C>
void tile_of(int64_t pairs, const int16_t *__restrict a, const int16_t *__restrict v, int32_t *__restrict tile) {
  int32_t sums[R][C] = {};
  for (int64_t p = 0; p < pairs; ++p, a += 2 * R, v += 2 * C) {
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t c = 0; c < C; ++c) {
        sums[r][c] += static_cast<int32_t>(a[2 * r]) * v[2 * c] + static_cast<int32_t>(a[2 * r + 1]) * v[2 * c + 1];
      }
    }
  }
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t c = 0; c < C; ++c) tile[r * C + c] = sums[r][c];
  }
}

template <int64_t R>
void rows_of(int64_t vectors, int64_t pairs, const int16_t *a, const int16_t *v, int32_t *tile) {
  if (vectors == 1) return tile_of<R, kLanes>(pairs, a, v, tile);
  tile_of<R, 2 * kLanes>(pairs, a, v, tile);
}

void multiply(int64_t rows, int64_t vectors, int64_t pairs, const int16_t *a, const int16_t *v, int32_t *tile) {
  if (rows == 1) return rows_of<1>(vectors, pairs, a, v, tile);
  if (rows == 2) return rows_of<2>(vectors, pairs, a, v, tile);
  rows_of<4>(vectors, pairs, a, v, tile);
}

}  // namespace
}  // namespace portable
}  // namespace kvant

#include "loops_body.h"
