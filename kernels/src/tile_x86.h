// `multiply` for x86: rows of pairs are broadcast, columns of pairs are vectors, vpmaddwd or vpdpwssd multiplies and
// adds both of a pair. Included by a source file that defines, in namespace kvant::KVANT_ISA, the type Vector,
// kLanes, kRows, kVectors and the functions zero, load, store, broadcast and multiply_add.
namespace kvant {
namespace KVANT_ISA {
namespace {

template <int64_t R, int64_t V>
void tile_of(int64_t pairs, const int16_t *a, const int16_t *v, int32_t *tile) {
  Vector sums[R][V];
#pragma GCC unroll 8
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int64_t c = 0; c < V; ++c) sums[r][c] = zero();
  }
  for (int64_t p = 0; p < pairs; ++p, a += 2 * R, v += 2 * V * kLanes) {
    Vector columns[V];
#pragma GCC unroll 4
    for (int64_t c = 0; c < V; ++c) columns[c] = load(v + 2 * c * kLanes);
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) {
      const Vector row = broadcast(a + 2 * r);
#pragma GCC unroll 4
      for (int64_t c = 0; c < V; ++c) sums[r][c] = multiply_add(sums[r][c], row, columns[c]);
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int64_t c = 0; c < V; ++c) store(tile + (r * V + c) * kLanes, sums[r][c]);
  }
}

template <int64_t R>
void rows_of(int64_t vectors, int64_t pairs, const int16_t *a, const int16_t *v, int32_t *tile) {
  if (vectors == 1) return tile_of<R, 1>(pairs, a, v, tile);
  if (vectors == 2 || kVectors == 2) return tile_of<R, 2>(pairs, a, v, tile);
  tile_of<R, kVectors>(pairs, a, v, tile);
}

void multiply(int64_t rows, int64_t vectors, int64_t pairs, const int16_t *a, const int16_t *v, int32_t *tile) {
  if (rows == 1) return rows_of<1>(vectors, pairs, a, v, tile);
  if (rows == 2) return rows_of<2>(vectors, pairs, a, v, tile);
  if (rows == 4 || kRows == 4) return rows_of<4>(vectors, pairs, a, v, tile);
  rows_of<kRows>(vectors, pairs, a, v, tile);
}

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
