// The linked list of the program's kernels. Each kernel registers itself when the program starts.
#pragma once

#include <cstdint>

namespace emulator {

struct Kernel {
    const char* name;
    uint32_t params_bytes;
    uint32_t threads;
    uint32_t blocks;
    void (*enter)(const void* params);
    const Kernel* next;

    Kernel(const char* name, uint32_t params_bytes, uint32_t threads, uint32_t blocks, void (*enter)(const void*));
};

// The parameters are in the memory of the host, so this copy to the stack of the kernel is not instrumented.
template <class Params, void (*kernel)(Params)>
__attribute__((no_sanitize("thread"))) void enter(const void* params) {
    kernel(*static_cast<const Params*>(params));
}

}  // namespace emulator

#define KERNEL(name, Params, threads, blocks)                                                                          \
    static void name(Params params);                                                                                   \
    static const emulator::Kernel name##_entry(#name, sizeof(Params), threads, blocks, emulator::enter<Params, name>); \
    static void name([[maybe_unused]] Params params)
