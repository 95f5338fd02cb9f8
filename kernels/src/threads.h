// One pool of threads for the whole process.
#pragma once

#include <cstdint>

namespace kvant {

// A function of the begin and the end of a range, which outlives this.
class Work {
 public:
  Work() = default;

  template <typename Function>
  Work(const Function &function)
      : function_(&function), call_([](const void *self, int64_t begin, int64_t end) -> int32_t {
          return (*static_cast<const Function *>(self))(begin, end);
        }) {}

  int32_t operator()(int64_t begin, int64_t end) const { return call_(function_, begin, end); }

 private:
  const void *function_ = nullptr;
  int32_t (*call_)(const void *, int64_t, int64_t) = nullptr;
};

// Call `work(begin, end)` over disjoint ranges that cover 0..items, about as long as each other, none shorter than half of
// `grain` where there are that many items, on up to num_threads() threads, as many ranges for each; returns the largest
// status that any call returned. Which thread takes which range is left to chance. While another thread of the process
// holds the pool, the caller does all the work.
int32_t parallel(int64_t items, int64_t grain, Work work);

int32_t num_threads();
void stay_on_thread(bool alone);
bool set_num_threads(int32_t count);

}  // namespace kvant
