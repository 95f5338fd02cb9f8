// Memory for packed weights: aligned to cache lines and filled with zeros.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "common.h"

namespace kvant {

template <typename T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(int64_t count) : count_(count) {
    int64_t bytes;
    if (!product({count, static_cast<int64_t>(sizeof(T))}, &bytes) || bytes > INT64_MAX - 64) throw std::bad_alloc();
    const size_t rounded = static_cast<size_t>(round_up(bytes + 1, 64));
    data_.reset(static_cast<T *>(std::aligned_alloc(64, rounded)));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(static_cast<void *>(data_.get()), 0, rounded);
  }

  T *data() { return data_.get(); }
  const T *data() const { return data_.get(); }
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }

 private:
  struct Free {
    void operator()(T *data) const { std::free(data); }
  };
  std::unique_ptr<T[], Free> data_;
  int64_t count_ = 0;
};

}  // namespace kvant
