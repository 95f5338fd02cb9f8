// Checked arithmetic, argument checks and scratch memory that all functions share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "kvant.h"

namespace kvant {

// Products of sizes, false on overflow or a negative factor.
bool product(std::initializer_list<int64_t> factors, int64_t *result);
bool product(const int64_t *factors, int64_t count, int64_t *result);

// A known dtype and a zero point inside it; that of int16 is 0, so that q - zero_point fits 16 bits.
bool valid(const kvant_source *source);
// uint8 or int16 (zero point 0), bounds inside the type, low <= high.
bool valid(const kvant_target *target);
bool valid_element_size(int64_t size);
// Whether a filter stays within `size` cells, or which status says why not.
int32_t check_filter(const kvant_filter &filter, int64_t size);
int64_t size_of(int32_t dtype);

// Side by side in memory, at any address of a float.
typedef float Four __attribute__((vector_size(16), aligned(4)));

// Memory for std::free, aligned to cache lines. As much of it as fills pages of 2 MB lies in such pages, where the system
// has them: small ones of large arrays would exhaust the TLB. Null when there is none.
void *allocate(int64_t bytes);
constexpr int64_t kLargePage = int64_t{1} << 21;

// Memory of the calling thread that is kept for its next use, 64-byte aligned. Null when there is none.
// The slots are independent of each other.
void *scratch(int slot, int64_t bytes);

template <typename T>
T *scratch_array(int slot, int64_t count) {
  int64_t bytes;
  if (!product({count, static_cast<int64_t>(sizeof(T))}, &bytes)) return nullptr;
  return static_cast<T *>(scratch(slot, bytes));
}

// The same for what all threads of one call share: the calling thread has it, in a slot of its own.
constexpr int kCallSlot = 5;
template <typename T>
T *call_array(int64_t count) {
  return scratch_array<T>(kCallSlot, count);
}

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// Where the element of number `index` of the first `axes` axes lies, in elements.
inline int64_t offset_of(int64_t index, int64_t axes, const int64_t *shape, const int64_t *strides) {
  int64_t offset = 0;
  for (int64_t axis = axes - 1; axis >= 0; --axis) {
    offset += index % shape[axis] * strides[axis];
    index /= shape[axis];
  }
  return offset;
}

// Elements that one thread handles at a time: small enough for the first-level cache.
constexpr int64_t kChunk = 1024;

}  // namespace kvant

// Leave the function with a status unless a condition holds.
#define KVANT_REQUIRE(condition, status) \
  do {                                   \
    if (!(condition)) return (status);   \
  } while (0)
