#include "parallel.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "kernels.h"

namespace bert {
namespace {

// How long an idle thread spins before it sleeps: longer than the gap between two kernels of a step, and too short to
// disturb other processes.
constexpr auto kSpinTime = std::chrono::microseconds(50);

inline void pause() { __builtin_ia32_pause(); }

void futex_wait(std::atomic<uint32_t>* word, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void futex_wake_all(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

int allowed_processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

thread_local bool inside_loop = false;

class Pool {
 public:
  void set_thread_count(int count) {
    std::lock_guard<std::mutex> lock(owner_);
    stop();
    count_ = count > 0 ? count : allowed_processors();
  }

  int thread_count() const { return count_.load(std::memory_order_relaxed); }

  // False if another thread has the pool.
  bool try_run(int64_t chunks, void (*function)(void*, int64_t), void* context) {
    std::unique_lock<std::mutex> lock(owner_, std::try_to_lock);
    if (!lock.owns_lock()) return false;
    start();
    function_ = function;
    context_ = context;
    chunks_ = chunks;
    next_.store(0, std::memory_order_relaxed);
    const uint32_t open = epoch_.load(std::memory_order_relaxed) + 1;
    epoch_.store(open);
    if (sleepers_.load() > 0) futex_wake_all(&epoch_);
    work();
    // Threads that see this do not begin; threads that have begun are counted in working_.
    epoch_.store(open + 1);
    wait_for_helpers();
    return true;
  }

  // The child of a fork has only the thread that called fork.
  void after_fork() {
    new (&owner_) std::mutex;
    new (&threads_) std::vector<std::thread>;
    working_ = 0;
    owner_sleeps_ = false;
    sleepers_ = 0;
    epoch_ = 0;
  }

 private:
  void start() {
    const size_t helpers = thread_count() - 1;
    if (threads_.size() == helpers) return;
    stop();
    stopping_ = false;
    const uint32_t now = epoch_.load();
    for (size_t i = 0; i < helpers; ++i) {
      threads_.emplace_back([this, now] { help(now); });
      pthread_setname_np(threads_.back().native_handle(), "bert-kernels");
    }
  }

  void stop() {
    stopping_ = true;
    epoch_.fetch_add(2);
    futex_wake_all(&epoch_);
    for (auto& thread : threads_) thread.join();
    threads_.clear();
  }

  void work() {
    inside_loop = true;
    for (int64_t chunk; (chunk = next_.fetch_add(1, std::memory_order_relaxed)) < chunks_;) function_(context_, chunk);
    inside_loop = false;
  }

  void help(uint32_t seen) {
    while (!stopping_.load()) {
      const uint32_t now = wait_for_change(seen);
      seen = now;
      if (now % 2 == 0) continue;
      working_.fetch_add(1);
      if (epoch_.load() == now) work();
      if (working_.fetch_sub(1) == 1 && owner_sleeps_.load()) futex_wake_all(&working_);
    }
  }

  // Waits for the threads that have begun. One of them may have been preempted.
  void wait_for_helpers() {
    const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
    for (int spins = 1; working_.load() != 0; ++spins) {
      pause();
      if (spins % 64 != 0 || std::chrono::steady_clock::now() < deadline) continue;
      owner_sleeps_.store(true);
      for (uint32_t working; (working = working_.load()) != 0;) futex_wait(&working_, working);
      owner_sleeps_.store(false);
    }
  }

  uint32_t wait_for_change(uint32_t seen) {
    const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
    for (int spins = 1;; ++spins) {
      const uint32_t now = epoch_.load();
      if (now != seen) return now;
      pause();
      if (spins % 64 == 0 && std::chrono::steady_clock::now() > deadline) break;
    }
    sleepers_.fetch_add(1);
    while (epoch_.load() == seen) futex_wait(&epoch_, seen);
    sleepers_.fetch_sub(1);
    return epoch_.load();
  }

  std::mutex owner_;
  std::vector<std::thread> threads_;
  std::atomic<int> count_{allowed_processors()};
  std::atomic<bool> stopping_{false};
  // Odd while helpers may join a loop.
  alignas(64) std::atomic<uint32_t> epoch_{0};
  std::atomic<int> sleepers_{0};
  alignas(64) std::atomic<uint32_t> working_{0};
  std::atomic<bool> owner_sleeps_{false};
  alignas(64) std::atomic<int64_t> next_{0};
  void (*function_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  int64_t chunks_ = 0;
};

// Never destroyed, because threads may use it during exit.
Pool& pool() {
  static Pool* const instance = [] {
    auto* made = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool().after_fork(); });
    return made;
  }();
  return *instance;
}

}  // namespace

void run_chunks(int64_t chunks, void (*function)(void*, int64_t), void* context) {
  if (chunks > 1 && !inside_loop && pool().thread_count() > 1 && pool().try_run(chunks, function, context)) return;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) function(context, chunk);
}

float* scratch(int64_t count) {
  struct Free {
    float* pointer = nullptr;
    int64_t size = 0;
    ~Free() { std::free(pointer); }
  };
  thread_local Free buffer;
  if (buffer.size < count) {
    std::free(buffer.pointer);
    buffer.pointer = static_cast<float*>(std::aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64));
    if (buffer.pointer == nullptr) throw std::bad_alloc();
    buffer.size = count;
  }
  return buffer.pointer;
}

}  // namespace bert

void bert_set_thread_count(int count) { bert::pool().set_thread_count(count); }

int bert_thread_count() { return bert::pool().thread_count(); }
