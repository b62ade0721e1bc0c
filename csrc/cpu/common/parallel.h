#pragma once

#include <cstdint>

#include "core/launch_plan.h"

#ifdef _OPENMP
#include <omp.h>
#endif

// The only place that starts threads. In the extension the OpenMP runtime is the one that torch has loaded.
namespace sage_ext::cpu {

// Calls body(task) for every task in [0, tasks), on up to `threads` threads; which thread takes which task is
// left open, so a task's result must not depend on it. `body` must not throw.
template <typename Body>
void parallel_tasks(int64_t tasks, int threads, Body&& body) {
#ifdef _OPENMP
  if (threads > 1 && tasks > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < tasks; ++i) body(i);
    return;
  }
#endif
  (void)threads;
  for (int64_t i = 0; i < tasks; ++i) body(i);
}

// A group of threads that go through the same phases together.
struct Team {
  int rank;
  int size;

  void barrier() const {
#ifdef _OPENMP
    if (size > 1) {
#pragma omp barrier
    }
#endif
  }

  // The part of [0, count) that is this member's, in whole multiples of `grain`.
  int64_t share_begin(int64_t count, int64_t grain, int member) const {
    const int64_t grains = ceil_div(count, grain);
    const int64_t begin = grains * member / size * grain;
    return begin < count ? begin : count;
  }
};

// Calls body(Team) on `threads` threads at once. `body` must not throw, and every member must reach the same
// barriers.
template <typename Body>
void parallel_team(int threads, Body&& body) {
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    body(Team{omp_get_thread_num(), omp_get_num_threads()});
    return;
  }
#endif
  (void)threads;
  body(Team{0, 1});
}

}  // namespace sage_ext::cpu
