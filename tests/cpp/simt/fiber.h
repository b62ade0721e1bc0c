#pragma once

#include <cstddef>
#include <memory>

namespace simt::detail {

// A stack of its own on which tasks run, one after another. One caller resumes fibers; a task suspends itself.
// Everything happens on one thread of the operating system.
class Fiber {
 public:
  using Task = void (*)();  // must not let exceptions out

  explicit Fiber(size_t index);  // the index only spreads stacks over the cache's sets
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Goes on with the suspended task, or starts this one if the last has ended. Returns when the task ends or suspends.
  void resume(Task task);
  // Called by the running task.
  static void suspend();
  // Forgets a suspended task: its stack is not unwound.
  void reset();

 private:
  struct Context;
  static void loop();
  void enter();
  void leave();

  size_t index_;
  char* mapping_;  // a guard page, then the stack
  Task task_ = nullptr;
  std::unique_ptr<Context> context_;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace simt::detail
