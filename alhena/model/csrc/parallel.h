// Loops over the threads of XLA's own pool, for all kernels.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace alhena {

// Pauses until a waiting thread yields: some 100 microseconds.
constexpr int64_t kSpins = 1 << 13;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Runs function(0), …, function(count - 1) on the calling thread and, when they come in time, on threads of the pool. The calling thread
// never waits for a task that no thread has begun, so calls that fill the whole pool cannot block each other.
template <typename F>
void Parallel(xla::ffi::ThreadPool& pool, int64_t count, const F& function) {
  struct State {
    std::atomic<int64_t> next{0}, finished{0};
  };
  auto state = std::make_shared<State>();
  // A late thread sees that no index is left before it would use the function, which may be gone.
  auto work = [state, count, &function] {
    for (int64_t i; (i = state->next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      function(i);
      state->finished.fetch_add(1, std::memory_order_release);
    }
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(work)(work));
  work();
  for (int64_t i = 0; state->finished.load(std::memory_order_acquire) < count; ++i) {
    // A helper that takes so long has lost its processor to another thread: this one, perhaps.
    i < kSpins ? Pause() : std::this_thread::yield();
  }
}

}  // namespace alhena
