// The functions that instrumented kernels call: for loads and stores through `-fsanitize=thread`, and for the rest through
// include/emulator.h. Each call is forwarded to Rust with the address of its caller. This file is not instrumented.

#include <cstdint>
#include <cstring>

#include "../include/emulator.h"

#define CALLER reinterpret_cast<uintptr_t>(__builtin_return_address(0))

// Implemented in Rust, in src/hooks.rs.
extern "C" {
void emulator_on_access(uintptr_t address, uint32_t bytes, uint32_t store, uintptr_t caller);
void emulator_on_copy(uintptr_t shared, uintptr_t global, uintptr_t caller);
void emulator_on_commit_copies();
void emulator_on_await_copies();
void emulator_on_await_groups(uint32_t pending);
void emulator_on_atomic(uintptr_t address, uint32_t bytes, uintptr_t caller);
void emulator_on_fence();
uint32_t emulator_on_block_barrier(uint32_t counts, uint32_t predicate, uintptr_t caller);
void emulator_on_grid_barrier(uintptr_t caller);
void emulator_on_warp_barrier(uint32_t mask, uintptr_t caller);
uint64_t emulator_on_shuffle(uint32_t mask, uint64_t value, uint32_t source, uintptr_t caller);
uint32_t emulator_on_ballot(uint32_t mask, uint32_t predicate, uintptr_t caller);
}

#define ACCESS(name, bytes, store) \
    extern "C" void __tsan_##name(void* address) { emulator_on_access(reinterpret_cast<uintptr_t>(address), bytes, store, CALLER); }
#define ACCESSES(bytes)                        \
    ACCESS(read##bytes, bytes, 0)              \
    ACCESS(write##bytes, bytes, 1)             \
    ACCESS(unaligned_read##bytes, bytes, 0)    \
    ACCESS(unaligned_write##bytes, bytes, 1)   \
    ACCESS(volatile_read##bytes, bytes, 0)     \
    ACCESS(volatile_write##bytes, bytes, 1)

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

extern "C" {

void __tsan_read_range(void* address, size_t bytes) { emulator_on_access(reinterpret_cast<uintptr_t>(address), bytes, 0, CALLER); }
void __tsan_write_range(void* address, size_t bytes) { emulator_on_access(reinterpret_cast<uintptr_t>(address), bytes, 1, CALLER); }
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

uint32_t emulator_block_barrier(uint32_t counts, uint32_t predicate) { return emulator_on_block_barrier(counts, predicate, CALLER); }
void emulator_grid_barrier() { emulator_on_grid_barrier(CALLER); }
void emulator_warp_barrier(uint32_t mask) { emulator_on_warp_barrier(mask, CALLER); }
uint64_t emulator_shuffle(uint32_t mask, uint64_t value, uint32_t source) { return emulator_on_shuffle(mask, value, source, CALLER); }
uint32_t emulator_ballot(uint32_t mask, uint32_t predicate) { return emulator_on_ballot(mask, predicate, CALLER); }
void emulator_fence() { emulator_on_fence(); }

void emulator_load128(const void* address, void* value) {
    emulator_on_access(reinterpret_cast<uintptr_t>(address), 16, 0, CALLER);
    memcpy(value, address, 16);
}

void emulator_store128(void* address, const void* value) {
    emulator_on_access(reinterpret_cast<uintptr_t>(address), 16, 1, CALLER);
    memcpy(address, value, 16);
}

void emulator_copy128(void* shared, const void* global) {
    emulator_on_copy(reinterpret_cast<uintptr_t>(shared), reinterpret_cast<uintptr_t>(global), CALLER);
}

void emulator_commit_copies() { emulator_on_commit_copies(); }
void emulator_await_copies() { emulator_on_await_copies(); }
void emulator_await_groups(uint32_t pending) { emulator_on_await_groups(pending); }

// Only one fiber runs at a time, so the load and the store are atomic.
uint64_t emulator_atomic(void* address, uint32_t bytes, uint64_t (*change)(uint64_t, uint64_t, uint64_t), uint64_t a,
                         uint64_t b) {
    emulator_on_atomic(reinterpret_cast<uintptr_t>(address), bytes, CALLER);
    uint64_t old = 0;
    memcpy(&old, address, bytes);
    const uint64_t changed = change(old, a, b);
    memcpy(address, &changed, bytes);
    return old;
}
}

#include "../include/kernel_list.h"

namespace emulator {

static const Kernel* first = nullptr;

Kernel::Kernel(const char* name, uint32_t params_bytes, uint32_t threads, uint32_t blocks, void (*enter)(const void*))
    : name(name), params_bytes(params_bytes), threads(threads), blocks(blocks), enter(enter), next(first) {
    first = this;
}

}  // namespace emulator

extern "C" const emulator::Kernel* emulator_first_kernel() { return emulator::first; }
