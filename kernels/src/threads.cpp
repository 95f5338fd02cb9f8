#include "threads.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "kvant.h"

namespace kvant {
namespace {

using Work = std::function<int32_t(int64_t, int64_t)>;
constexpr int32_t kMostThreads = 1024;

int32_t available_threads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::clamp(CPU_COUNT(&set), 1, kMostThreads);
#endif
  return std::clamp(static_cast<int32_t>(std::thread::hardware_concurrency()), 1, kMostThreads);
}

int32_t default_threads() {
  const char *text = std::getenv("KVANT_NUM_THREADS");
  const long asked = text == nullptr ? 0 : std::strtol(text, nullptr, 10);
  return asked >= 1 && asked <= kMostThreads ? static_cast<int32_t>(asked) : available_threads();
}

// Workers sleep until a generation begins; worker i then takes part i + 1 of it, the caller part 0.
class Pool {
 public:
  explicit Pool(int32_t threads) : threads_(threads) {}

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread &worker : workers_) worker.join();
  }

  int32_t threads() const { return threads_; }

  // False if the pool is busy with another caller.
  bool try_run(int64_t items, int64_t parts, const Work &work, int32_t *status) {
    std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
    if (!busy.owns_lock()) return false;
    start_workers();
    begin(items, std::min<int64_t>(parts, static_cast<int64_t>(workers_.size()) + 1), work);
    run_part(0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
    *status = status_.load();
    return true;
  }

 private:
  void start_workers() {
    while (static_cast<int32_t>(workers_.size()) + 1 < threads_) {
      const int64_t index = static_cast<int64_t>(workers_.size()) + 1;
      try {
        workers_.emplace_back([this, index, seen = generation_] { serve(index, seen); });
      } catch (const std::exception &) {
        threads_ = static_cast<int32_t>(workers_.size()) + 1;  // the system grants no more
      }
    }
  }

  void begin(int64_t items, int64_t parts, const Work &work) {
    std::lock_guard<std::mutex> lock(mutex_);
    work_ = &work;
    items_ = items;
    parts_ = parts;
    status_ = KVANT_OK;
    pending_ = parts - 1;
    ++generation_;
    wake_.notify_all();
  }

  void run_part(int64_t part) {
    const int32_t result = (*work_)(items_ * part / parts_, items_ * (part + 1) / parts_);
    int32_t before = status_.load();
    while (before < result && !status_.compare_exchange_weak(before, result)) {
    }
  }

  void serve(int64_t index, uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
      if (stop_) return;
      seen = generation_;
      if (index >= parts_) continue;
      lock.unlock();
      run_part(index);
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  std::mutex busy_;   // held by the caller that uses the pool
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::condition_variable done_;
  std::vector<std::thread> workers_;
  std::atomic<int32_t> threads_;
  const Work *work_ = nullptr;
  int64_t items_ = 0;
  int64_t parts_ = 1;
  int64_t pending_ = 0;
  uint64_t generation_ = 0;
  std::atomic<int32_t> status_{KVANT_OK};
  bool stop_ = false;
};

// The pool of this process. Calls hold it shared, replacing it is exclusive.
struct Process {
  pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
  Pool *pool = nullptr;
  int32_t threads = 0;
};

Process *process = new Process;  // never destroyed: threads may still call while the process ends

// A child has none of its parent's threads, and its locks may be held by threads that do not exist: it starts anew.
void restart_in_child() {
  const int32_t threads = process->threads;
  process = new Process;
  process->threads = threads;
}

const int registered = pthread_atfork(nullptr, nullptr, restart_in_child);

// Null, with the lock held all the same, where there is no memory for a pool.
Pool *acquire_pool() {
  pthread_rwlock_rdlock(&process->lock);
  if (process->pool == nullptr) {
    pthread_rwlock_unlock(&process->lock);
    set_num_threads(process->threads);
    pthread_rwlock_rdlock(&process->lock);
  }
  return process->pool;
}

void release_pool() { pthread_rwlock_unlock(&process->lock); }

}  // namespace

int32_t parallel(int64_t items, int64_t grain, const Work &work) {
  if (items <= 0) return KVANT_OK;
  const int64_t most = std::max<int64_t>(1, items / std::max<int64_t>(1, grain));
  if (most == 1) return work(0, items);
  Pool *pool = acquire_pool();
  const int64_t parts = pool == nullptr ? 1 : std::min<int64_t>(most, pool->threads());
  int32_t status = KVANT_OK;
  if (parts == 1 || !pool->try_run(items, parts, work, &status)) status = work(0, items);
  release_pool();
  return status;
}

int32_t num_threads() {
  const Pool *pool = acquire_pool();
  const int32_t threads = pool == nullptr ? 1 : pool->threads();
  release_pool();
  return threads;
}

bool set_num_threads(int32_t count) {
  if (count < 0 || count > kMostThreads) return false;
  Pool *fresh = new (std::nothrow) Pool(count == 0 ? default_threads() : count);
  if (fresh == nullptr) return false;
  pthread_rwlock_wrlock(&process->lock);
  Pool *old = process->pool;
  process->pool = fresh;
  process->threads = count;
  pthread_rwlock_unlock(&process->lock);
  delete old;
  return true;
}

}  // namespace kvant

extern "C" int32_t kvant_num_threads(void) { return kvant::num_threads(); }

extern "C" int32_t kvant_set_num_threads(int32_t count) {
  return kvant::set_num_threads(count) ? KVANT_OK : KVANT_BAD_ARGUMENT;
}
