#pragma once

#include <cstddef>
#include <memory>

namespace simt::detail {

// A stack of its own on which tasks run, one after another. One caller resumes fibers; a task suspends itself, for the
// caller or for another fiber.
// Everything happens on one thread of the operating system.
class Fiber {
 public:
  using Task = void (*)();  // must not let exceptions out

  explicit Fiber(size_t index);  // the index only spreads stacks over the cache's sets
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Goes on with the suspended task, or starts this one if the last has ended. Returns when a task ends or suspends.
  void resume(Task task);
  // Called by the running task: back to the caller of resume().
  static void suspend();
  // Called by the running task: on with another fiber, as by its resume().
  static void suspend_for(Fiber& next, Task task);
  // Forgets a suspended task: its stack is not unwound.
  void reset();

 private:
  struct Context;
  static void loop();
  void enter();
  void leave();
  void leave_for(Fiber& next);
  void entered();

  size_t index_;
  char* mapping_;  // a guard page, then the stack
  Task task_ = nullptr;
  std::unique_ptr<Context> context_;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace simt::detail
