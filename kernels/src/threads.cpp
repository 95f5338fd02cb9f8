#include "threads.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "common.h"
#include "kvant.h"

namespace kvant {
namespace {

constexpr int32_t kMostThreads = 1024;
constexpr int64_t kChunksPerThread = 16;

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

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Between two layers a worker that spins is there at once; one that sleeps takes longer than many layers.
constexpr std::chrono::microseconds kSpin{200};

// True as soon as `ready` is; false if it was not within kSpin.
template <typename Ready>
bool spin(Ready ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// Where a thread may run. A worker that is woken, or has just begun, tends to land on the processor of the thread that
// calls it, which is busy, and to stay there for milliseconds although others are idle: it is kept off for that moment.
class Stray {
 public:
  // The thread must sleep, or be the calling one.
  void keep_off(pthread_t thread, int processor) {
#if defined(__linux__)
    if (kept_ || processor < 0 || processor >= CPU_SETSIZE) return;
    if (pthread_getaffinity_np(thread, sizeof before_, &before_) != 0) return;
    cpu_set_t others = before_;
    CPU_CLR(processor, &others);
    kept_ = CPU_COUNT(&others) > 0 && pthread_setaffinity_np(thread, sizeof others, &others) == 0;
#else
    (void)thread, (void)processor;
#endif
  }

  // By the thread itself, once it is elsewhere.
  void allow_all() {
#if defined(__linux__)
    if (kept_) pthread_setaffinity_np(pthread_self(), sizeof before_, &before_);
    kept_ = false;
#endif
  }

 private:
#if defined(__linux__)
  cpu_set_t before_;
  bool kept_ = false;
#endif
};

int this_processor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// One piece of work at a time is open: the caller and those workers that come in time take chunk after chunk of it. Each
// begins with a share of its own, the same one of every layer, so that it mostly finds what it wrote itself in its cache,
// and then takes what others have left. The caller closes the work when all chunks are taken and waits for the workers
// inside; it never waits for one that still sleeps.
class Pool {
 public:
  explicit Pool(int32_t threads) : threads_(threads) {}

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      ++open_.generation;
    }
    wake_.notify_all();
    for (const auto &worker : workers_) worker->thread.join();
  }

  int32_t threads() const { return threads_; }

  // False if the pool is busy with another caller.
  bool try_run(int64_t items, int64_t chunks, Work work, int32_t *status) {
    std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
    if (!busy.owns_lock()) return false;
    start_workers();
    open(items, chunks, work);
    const int32_t worst = take_chunks(0);
    open_.inside.fetch_or(kClosed);
    const auto empty = [this] { return open_.inside.load() == kClosed; };
    while (!spin(empty)) std::this_thread::yield();
    *status = std::max(worst, status_.load());
    return true;
  }

 private:
  static constexpr int64_t kClosed = int64_t{1} << 62;

  // How many chunks of a thread's share are taken, of the work whose turn it is: nobody has to set it back.
  struct alignas(64) Share {
    std::atomic<uint64_t> taken{0};  // turn * kTurn + chunks
  };

  static constexpr uint64_t kTurn = uint64_t{1} << 32;

  // The work that is open. Workers spin on this line and find there all that they need to begin.
  struct alignas(64) Open {
    std::atomic<uint64_t> generation{0};
    std::atomic<int64_t> inside{kClosed};  // workers that take chunks, and whether no more may come
    Work work;
    int64_t items = 0, chunks = 1;
    uint64_t turn = 0;
  };

  struct Worker {
    std::thread thread;
    Share share;
    bool sleeps = false;  // this and what follows under mutex_, once the thread runs
    Stray stray;
  };

  void start_workers() {
    while (static_cast<int32_t>(workers_.size()) + 1 < threads_) {
      try {
        workers_.push_back(std::make_unique<Worker>());
        Worker *worker = workers_.back().get();
        const int64_t place = static_cast<int64_t>(workers_.size());
        worker->thread = std::thread([this, worker, place, seen = open_.generation.load(), processor = this_processor()] {
          worker->stray.keep_off(pthread_self(), processor);
          worker->stray.allow_all();
          serve(worker, place, seen);
        });
      } catch (const std::exception &) {
        if (!workers_.empty() && !workers_.back()->thread.joinable()) workers_.pop_back();
        threads_ = static_cast<int32_t>(workers_.size()) + 1;  // the system grants no more
      }
    }
  }

  // Nobody is inside, so what describes the work may change; whoever enters afterwards sees it.
  void open(int64_t items, int64_t chunks, Work work) {
    open_.work = work;
    open_.items = items;
    open_.chunks = chunks;
    open_.turn += kTurn;
    status_.store(KVANT_OK, std::memory_order_relaxed);
    open_.inside.store(0, std::memory_order_release);
    ++open_.generation;
    if (sleepers_.load() > 0) {
      const int processor = this_processor();
      std::lock_guard<std::mutex> lock(mutex_);
      for (const auto &worker : workers_) {
        if (worker->sleeps) worker->stray.keep_off(worker->thread.native_handle(), processor);
      }
      wake_.notify_all();
    }
  }

  bool enter() {
    int64_t before = open_.inside.load();
    while ((before & kClosed) == 0) {
      if (open_.inside.compare_exchange_weak(before, before + 1)) return true;
    }
    return false;
  }

  // Chunks differ by one item at most, the first ones are larger.
  int64_t begin_of(int64_t chunk) const {
    return open_.items / open_.chunks * chunk + std::min(chunk, open_.items % open_.chunks);
  }

  // The caller's is 0.
  Share &share_of(int64_t thread) { return thread == 0 ? callers_ : workers_[static_cast<size_t>(thread - 1)]->share; }

  // The number of the next chunk of a share of so many, or as many as that if all are taken.
  int64_t take(Share &share, int64_t chunks) {
    uint64_t before = share.taken.load(), taken;
    do {
      taken = before < open_.turn ? 0 : before - open_.turn;
      if (taken >= static_cast<uint64_t>(chunks)) return chunks;
    } while (!share.taken.compare_exchange_weak(before, open_.turn + taken + 1));
    return static_cast<int64_t>(taken);
  }

  int32_t take_chunks(int64_t thread) {
    const int64_t threads = threads_, chunks = open_.chunks;
    int32_t worst = KVANT_OK;
    for (int64_t i = 0; i < threads; ++i) {
      const int64_t owner = (thread + i) % threads, first = chunks * owner / threads, end = chunks * (owner + 1) / threads;
      for (;;) {
        const int64_t chunk = first + take(share_of(owner), end - first);
        if (chunk >= end) break;
        worst = std::max(worst, open_.work(begin_of(chunk), begin_of(chunk + 1)));
      }
    }
    return worst;
  }

  void add(int32_t status) {
    if (status == KVANT_OK) return;
    int32_t before = status_.load();
    while (before < status && !status_.compare_exchange_weak(before, status)) {
    }
  }

  void serve(Worker *self, int64_t place, uint64_t seen) {
    const auto called = [this, &seen] { return open_.generation.load() != seen; };
    for (;;) {
      if (!spin(called)) sleep(self, called);
      if (stop_) return;
      seen = open_.generation.load();
      if (!enter()) continue;
      add(take_chunks(place));
      open_.inside.fetch_sub(1);
    }
  }

  template <typename Called>
  void sleep(Worker *self, Called called) {
    std::unique_lock<std::mutex> lock(mutex_);
    self->sleeps = true;
    ++sleepers_;
    wake_.wait(lock, called);
    --sleepers_;
    self->sleeps = false;
    self->stray.allow_all();
  }

  std::mutex busy_;   // held by the caller that uses the pool
  std::mutex mutex_;  // what sleepers wait with
  std::condition_variable wake_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::atomic<int32_t> threads_;
  Open open_;
  Share callers_;
  std::atomic<int32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int32_t> status_{KVANT_OK};
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

thread_local bool is_alone = false;

}  // namespace

int32_t parallel(int64_t items, int64_t grain, Work work) {
  if (items <= 0) return KVANT_OK;
  grain = std::max<int64_t>(1, grain);
  if (is_alone || items < 2 * grain) return work(0, items);
  Pool *pool = acquire_pool();
  const int64_t threads = pool == nullptr ? 1 : pool->threads();
  // As many for each thread; some more than one, so that one that is held up leaves its share to the others.
  const int64_t wanted = std::min(items / grain, kChunksPerThread * threads), chunks = std::min(items, round_up(wanted, threads));
  int32_t status = KVANT_OK;
  if (threads == 1 || !pool->try_run(items, chunks, work, &status)) status = work(0, items);
  release_pool();
  return status;
}

void stay_on_thread(bool alone) { is_alone = alone; }

int32_t num_threads() {
  if (is_alone) return 1;
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

extern "C" int32_t kvant_stay_on_thread(int32_t alone) {
  kvant::stay_on_thread(alone != 0);
  return KVANT_OK;
}

extern "C" int32_t kvant_set_num_threads(int32_t count) {
  return kvant::set_num_threads(count) ? KVANT_OK : KVANT_BAD_ARGUMENT;
}
