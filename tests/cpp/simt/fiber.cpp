#include "simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#include "simt/sanitizer.h"

#if defined(__x86_64__) && defined(__ELF__) && !defined(SIMT_UCONTEXT)
#define SIMT_ASSEMBLY 1
#else
#include <ucontext.h>
#endif

#if defined(SIMT_ASSEMBLY)
// void simt_switch_stack(void** save, void* load): keeps what a called function has to keep, and its stack pointer.
// Kernels leave the floating-point control words alone.
extern "C" void simt_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.hidden simt_switch_stack
.globl simt_switch_stack
.type simt_switch_stack, @function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stack, . - simt_switch_stack
)");
#endif

namespace simt::detail {
namespace {

// A kernel's parameters, up to 32 KiB, are copied to the stack. Sanitizers make frames larger. Only touched pages cost.
#if defined(SIMT_HAS_ASAN)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 128 * 1024;
#endif

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

Fiber* running = nullptr;
[[maybe_unused]] bool is_from_caller = false;  // who the running fiber was entered by: resume(), or another fiber
[[maybe_unused]] void* caller_fake_stack = nullptr;
[[maybe_unused]] const void* caller_stack = nullptr;
[[maybe_unused]] size_t caller_stack_bytes = 0;

}  // namespace

#if defined(SIMT_ASSEMBLY)

struct Fiber::Context {
  void* stack = nullptr;
};
namespace {
void* caller = nullptr;
}

void Fiber::reset() {
  SIMT_ASAN(__asan_unpoison_memory_region(mapping_ + page_bytes(), kStackBytes));
  // Stacks start at different cache sets, or a thousand of them would compete for a few.
  auto* top = reinterpret_cast<void**>(mapping_ + page_bytes() + kStackBytes - index_ % 32 * 128);
  *--top = nullptr;  // loop()'s return address: it never returns, and backtraces end here
  *--top = reinterpret_cast<void*>(&Fiber::loop);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers that simt_switch_stack restores
  context_->stack = top;
  task_ = nullptr;
  fake_stack_ = nullptr;
}

inline void Fiber::enter() { simt_switch_stack(&caller, context_->stack); }
inline void Fiber::leave() { simt_switch_stack(&context_->stack, caller); }
inline void Fiber::leave_for(Fiber& next) { simt_switch_stack(&context_->stack, next.context_->stack); }

#else

struct Fiber::Context {
  ucontext_t fiber;
};
namespace {
ucontext_t caller;
}

void Fiber::reset() {
  SIMT_ASAN(__asan_unpoison_memory_region(mapping_ + page_bytes(), kStackBytes));
  getcontext(&context_->fiber);
  context_->fiber.uc_stack.ss_sp = mapping_ + page_bytes();
  context_->fiber.uc_stack.ss_size = kStackBytes - index_ % 32 * 128;
  context_->fiber.uc_link = nullptr;
  makecontext(&context_->fiber, &Fiber::loop, 0);
  task_ = nullptr;
  fake_stack_ = nullptr;
}

void Fiber::enter() { swapcontext(&caller, &context_->fiber); }
void Fiber::leave() { swapcontext(&context_->fiber, &caller); }
void Fiber::leave_for(Fiber& next) { swapcontext(&context_->fiber, &next.context_->fiber); }

#endif

Fiber::Fiber(size_t index) : index_(index), context_(std::make_unique<Context>()) {
  void* mapping = mmap(nullptr, page_bytes() + kStackBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED || mprotect(mapping, page_bytes(), PROT_NONE) != 0) throw std::bad_alloc();
  mapping_ = static_cast<char*>(mapping);
  reset();
}

Fiber::~Fiber() {
  SIMT_ASAN(__asan_unpoison_memory_region(mapping_ + page_bytes(), kStackBytes));
  munmap(mapping_, page_bytes() + kStackBytes);
}

void Fiber::resume(Task task) {
  if (task_ == nullptr) task_ = task;
  running = this;
  is_from_caller = true;
  SIMT_ASAN(__sanitizer_start_switch_fiber(&caller_fake_stack, mapping_ + page_bytes(), kStackBytes));
  enter();
  SIMT_ASAN(__sanitizer_finish_switch_fiber(caller_fake_stack, nullptr, nullptr));
}

void Fiber::suspend() {
  Fiber* self = running;
  SIMT_ASAN(__sanitizer_start_switch_fiber(&self->fake_stack_, caller_stack, caller_stack_bytes));
  self->leave();
  self->entered();
}

void Fiber::suspend_for(Fiber& next, Task task) {
  Fiber* self = running;
  if (next.task_ == nullptr) next.task_ = task;
  running = &next;
  is_from_caller = false;
  SIMT_ASAN(__sanitizer_start_switch_fiber(&self->fake_stack_, next.mapping_ + page_bytes(), kStackBytes));
  self->leave_for(next);
  self->entered();
}

void Fiber::entered() {
  SIMT_ASAN(__sanitizer_finish_switch_fiber(fake_stack_, is_from_caller ? &caller_stack : nullptr,
                                            is_from_caller ? &caller_stack_bytes : nullptr));
}

// The bottom of every fiber's stack.
void Fiber::loop() {
  running->entered();
  for (;;) {
    Fiber* self = running;
    self->task_();
    self->task_ = nullptr;
    suspend();
  }
}

}  // namespace simt::detail
