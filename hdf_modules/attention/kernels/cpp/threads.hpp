// Work on several threads, by the OpenMP that torch uses too.
#pragma once

#include <omp.h>

#include <cstdint>

namespace hdf {

constexpr int64_t kWorthwhile = 1 << 15;  // values that several threads share

// Call ``work`` with every number below ``count`` and the number of the thread that calls. A region of
// one thread would be a region all the same, and threads inside it made anew each time.
template <typename Work>
void side_by_side(int64_t threads, int64_t count, Work work) {
  if (threads == 1) {
    for (int64_t i = 0; i < count; ++i) work(i, int64_t(0));
    return;
  }
#pragma omp parallel for num_threads(int(threads)) schedule(dynamic)
  for (int64_t i = 0; i < count; ++i) work(i, int64_t(omp_get_thread_num()));
}

}  // namespace hdf
