// Preloaded into a process, counts the bytes that malloc and its relatives have handed out: now, and at most since
// the last reset. Whoever allocates is counted: torch's tensors and the kernels' scratch alike.
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);
extern void __libc_free(void*);

static atomic_llong live, most;

static void* taken(void* memory) {
  if (memory == NULL) return memory;
  const long long size = (long long)malloc_usable_size(memory);
  const long long now = atomic_fetch_add(&live, size) + size;
  long long seen = atomic_load(&most);
  while (now > seen && !atomic_compare_exchange_weak(&most, &seen, now)) {
  }
  return memory;
}

static void given_back(void* memory) {
  if (memory != NULL) atomic_fetch_sub(&live, (long long)malloc_usable_size(memory));
}

void* malloc(size_t size) { return taken(__libc_malloc(size)); }
void* calloc(size_t count, size_t size) { return taken(__libc_calloc(count, size)); }
void* memalign(size_t alignment, size_t size) { return taken(__libc_memalign(alignment, size)); }
void* aligned_alloc(size_t alignment, size_t size) { return taken(__libc_memalign(alignment, size)); }

void* realloc(void* memory, size_t size) {
  given_back(memory);
  return taken(__libc_realloc(memory, size));
}

int posix_memalign(void** result, size_t alignment, size_t size) {
  void* memory = taken(__libc_memalign(alignment, size));
  if (memory == NULL) return ENOMEM;
  *result = memory;
  return 0;
}

void free(void* memory) {
  given_back(memory);
  __libc_free(memory);
}

long long counted_live(void) { return atomic_load(&live); }
long long counted_most(void) { return atomic_load(&most); }
void counted_reset(void) { atomic_store(&most, atomic_load(&live)); }
