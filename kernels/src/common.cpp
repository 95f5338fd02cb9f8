#include "common.h"

#include <sys/mman.h>

#include <cstdlib>

namespace kvant {

bool product(std::initializer_list<int64_t> factors, int64_t *result) {
  return product(factors.begin(), static_cast<int64_t>(factors.size()), result);
}

bool product(const int64_t *factors, int64_t count, int64_t *result) {
  int64_t total = 1;
  for (int64_t i = 0; i < count; ++i) {
    if (factors[i] < 0 || __builtin_mul_overflow(total, factors[i], &total)) return false;
  }
  *result = total;
  return true;
}

bool valid(const kvant_source *source) {
  if (source->dtype == KVANT_INT16) return source->zero_point == 0;
  const int32_t low = source->dtype == KVANT_UINT8 ? 0 : -128;
  return (source->dtype == KVANT_UINT8 || source->dtype == KVANT_INT8) && source->zero_point >= low &&
         source->zero_point <= low + 255;
}

bool valid(const kvant_target *target) {
  const int32_t low = target->dtype == KVANT_UINT8 ? 0 : -32768;
  const int32_t high = target->dtype == KVANT_UINT8 ? 255 : 32767;
  return (target->dtype == KVANT_UINT8 || target->dtype == KVANT_INT16) && target->low >= low &&
         target->high <= high && target->low <= target->high && target->zero_point >= 0 &&
         target->zero_point <= (target->dtype == KVANT_UINT8 ? 255 : 0);
}

bool valid_element_size(int64_t size) { return size == 1 || size == 2 || size == 4 || size == 8; }

int64_t size_of(int32_t dtype) { return dtype == KVANT_INT16 ? 2 : 1; }

int32_t check_filter(const kvant_filter &filter, int64_t size) {
  int64_t bytes;
  KVANT_REQUIRE(filter.first && filter.weights, KVANT_NULL_POINTER);
  KVANT_REQUIRE(filter.count >= 0 && filter.terms >= 1 && filter.terms <= size, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(product({filter.count, filter.terms, 4}, &bytes), KVANT_OVERFLOW);
  for (int64_t i = 0; i < filter.count; ++i) {
    KVANT_REQUIRE(filter.first[i] >= 0 && filter.first[i] <= size - filter.terms, KVANT_BAD_ARGUMENT);
  }
  return KVANT_OK;
}

namespace {

constexpr int kSlots = kCallSlot + 1;
constexpr int64_t kWorthLargePage = 1 << 17;  // bytes; fewer have few pages anyway

struct Scratch {
  void *data[kSlots] = {};
  int64_t bytes[kSlots] = {};

  ~Scratch() {
    for (void *entry : data) std::free(entry);
  }
};

thread_local Scratch thread_scratch;

}  // namespace

void *allocate(int64_t bytes) {
  if (bytes < 0 || bytes > INT64_MAX - kLargePage) return nullptr;
  const int64_t alignment = bytes >= kLargePage ? kLargePage : 64;
  void *data = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(round_up(bytes + 1, alignment)));
#if defined(MADV_HUGEPAGE)
  if (data != nullptr && bytes >= kLargePage) madvise(data, static_cast<size_t>(bytes / kLargePage * kLargePage), MADV_HUGEPAGE);
#endif
  return data;
}

void *scratch(int slot, int64_t bytes) {
  Scratch &own = thread_scratch;
  if (bytes <= own.bytes[slot] && own.data[slot] != nullptr) return own.data[slot];
  if (bytes > INT64_MAX - kLargePage) return nullptr;
  const int64_t rounded = round_up(bytes + 64, bytes < kWorthLargePage ? 4096 : kLargePage);
  std::free(own.data[slot]);
  own.data[slot] = allocate(rounded);
  own.bytes[slot] = own.data[slot] == nullptr ? 0 : rounded;
  return own.data[slot];
}

}  // namespace kvant
