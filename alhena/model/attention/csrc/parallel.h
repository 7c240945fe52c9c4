// Loops over the threads of XLA's own pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace alhena {

// Calls f(i) for every i below n, in any order and on several threads; returns when all calls have. A thread of the pool that comes late
// finds nothing to do, so that the calling thread never waits for one that is busy.
template <class F>
void parallel(xla::ffi::ThreadPool pool, int64_t n, const F& f) {
  int64_t helpers = std::min<int64_t>(pool.num_threads() - 1, n - 1);
  if (helpers <= 0) {
    for (int64_t i = 0; i < n; ++i) f(i);
    return;
  }
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  // Late threads see that no index is left before they would use f, which may be gone.
  auto work = [shared, n, &f] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < n;) {
      f(i);
      shared->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 0; i < helpers; ++i) {
    auto copy = work;
    pool.Schedule(std::move(copy));
  }
  work();
  // The last calls end soon, unless their thread was suspended.
  for (int spins = 0; shared->done.load(std::memory_order_acquire) < n; ++spins)
    if (spins > 4096) std::this_thread::yield();
}

}  // namespace alhena
