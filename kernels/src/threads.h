// One pool of threads for the whole process.
#pragma once

#include <cstdint>
#include <functional>

namespace kvant {

// Call `work(begin, end)` over disjoint ranges that cover 0..items, about as long as each other, none shorter than half of
// `grain` where there are that many items, on up to num_threads() threads, as many ranges for each; returns the largest
// status that any call returned. Which thread takes which range is left to chance. While another thread of the process
// holds the pool, the caller does all the work.
int32_t parallel(int64_t items, int64_t grain, const std::function<int32_t(int64_t, int64_t)> &work);

int32_t num_threads();
void stay_on_thread(bool alone);
bool set_num_threads(int32_t count);

}  // namespace kvant
