// The functions of the emulator that kernels call. They are implemented in runtime/, which forwards each call to Rust with the
// address of its caller.
#pragma once

#include <cstdint>

extern "C" {

struct EmulatorIndex {
    uint32_t x, y, z;
};

// These two are passed in registers, so that using them is not an access to memory.
struct EmulatorWords {
    uint64_t low, high;
};
struct EmulatorSums {
    float sums[4];
};

EmulatorIndex emulator_thread_index() __attribute__((const));
EmulatorIndex emulator_block_index() __attribute__((const));
EmulatorIndex emulator_block_dim() __attribute__((const));
EmulatorIndex emulator_grid_dim() __attribute__((const));
uint32_t emulator_lane() __attribute__((const));
unsigned char* emulator_shared_memory() __attribute__((const));

uint32_t emulator_block_barrier(uint32_t counts, uint32_t predicate);
void emulator_grid_barrier();
void emulator_warp_barrier(uint32_t mask);
uint64_t emulator_shuffle(uint32_t mask, uint64_t value, uint32_t source);
uint32_t emulator_ballot(uint32_t mask, uint32_t predicate);
void emulator_fence();

void emulator_load128(const void* address, void* value);
void emulator_store128(void* address, const void* value);
void emulator_copy128(void* shared, const void* global);
void emulator_commit_copies();
void emulator_await_copies();
void emulator_await_groups(uint32_t pending);
uint64_t emulator_atomic(void* address, uint32_t bytes, uint64_t (*change)(uint64_t, uint64_t, uint64_t), uint64_t a,
                         uint64_t b);

EmulatorWords emulator_ldmatrix(const void* row, uint32_t count, uint32_t transposed);
EmulatorSums emulator_multiply(EmulatorWords a, uint64_t b, EmulatorSums c, uint32_t half);

}
