// Without this file a build on a newer glibc would not load on the oldest that torch's own wheels run on, 2.28. What is
// defined here is hidden, and so stands for the library's own in this module alone.
#include <cstdlib>

#ifdef __GLIBC__

// glibc 2.32 has it. libstdc++'s shared_ptr asks whether it may count without atomics: never.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

#ifdef __x86_64__
// glibc 2.29 has another, which handles errors otherwise. Both return the same.
extern "C" double log_of_2_2_5(double x);
__asm__(".symver log_of_2_2_5, log@GLIBC_2.2.5");
// By another name: the compiler's own declaration of log is not hidden.
extern "C" __attribute__((visibility("hidden"))) double sage_ext_log(double x) __asm__("log");
double sage_ext_log(double x) { return log_of_2_2_5(x); }
#endif

#endif
