// Asynchronous copies. Their bytes are visible to the thread that awaits them, and to others after a barrier that follows. Each thread
// copies a packet.

#include "packet.cuh"
#include "params.cuh"

namespace {

using Numbers = Packet<float>;

__device__ __forceinline__ uint32_t neighbour() { return (threadIdx.x + 1) % blockDim.x; }
__device__ __forceinline__ float* packet(float* numbers, uint32_t index) { return numbers + index * Numbers::size; }
__device__ __forceinline__ float* staged(uint32_t index) {
    return packet(reinterpret_cast<float*>(device::shared_memory()), index);
}
__device__ __forceinline__ void store(const TestParams& params, uint32_t from) {
    Numbers::load(staged(from)).store(packet(params.output, blockIdx.x * blockDim.x + threadIdx.x));
}

}  // namespace

KERNEL(copy_sound, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    device::await_copies();
    // A thread needs no barrier to read its own copy.
    store(params, threadIdx.x);
    __syncthreads();
    store(params, neighbour());
}

// While the copies of the second half of the packets are in flight, the first half is read, and barriers are passed.
KERNEL(copy_sound_ahead, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    device::await_copies();
    device::copy128_async(staged(blockDim.x + threadIdx.x), packet(params.input, blockDim.x + threadIdx.x));
    __syncthreads();
    const Numbers first = Numbers::load(staged(neighbour()));
    __syncthreads();
    device::await_copies();
    __syncthreads();
    first.store(packet(params.output, threadIdx.x));
    Numbers::load(staged(blockDim.x + neighbour())).store(packet(params.output, blockDim.x + threadIdx.x));
}

KERNEL(copy_not_awaited, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    const float value = *staged(threadIdx.x);  // fault: own
    device::await_copies();
    params.output[threadIdx.x] = value;
}

// The destination must not be read while a copy is in flight, even if it was initialised before.
KERNEL(copy_awaited_late, TestParams, 1024, 1) {
    *staged(threadIdx.x) = 0.0f;
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    __syncthreads();
    const float value = *staged(neighbour());  // fault: late
    device::await_copies();
    params.output[threadIdx.x] = value;
}

KERNEL(copy_without_barrier, TestParams, 1024, 1) {
    *staged(threadIdx.x) = 0.0f;
    __syncthreads();
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    device::await_copies();
    params.output[threadIdx.x] = *staged(neighbour());
}

// The barrier comes before the copy is awaited.
KERNEL(copy_barrier_before_await, TestParams, 1024, 1) {
    *staged(threadIdx.x) = 0.0f;
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    __syncthreads();
    device::await_copies();
    params.output[threadIdx.x] = *staged(neighbour());
}

KERNEL(copy_at_the_end, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    device::await_copies();
    store(params, threadIdx.x);
    if (threadIdx.x != 5) return;
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));  // fault: end
}

KERNEL(copy_over_copy, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    device::copy128_async(staged(threadIdx.x), packet(params.input, neighbour()));  // fault: twice
    device::await_copies();
    store(params, threadIdx.x);
}

KERNEL(copy_under_a_store, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    staged(threadIdx.x)[3] = 1.0f;  // fault: under
    device::await_copies();
    store(params, threadIdx.x);
}

KERNEL(copy_over_unread, TestParams, 1024, 1) {
    *staged(threadIdx.x) = 0.0f;
    __syncthreads();
    params.output[threadIdx.x] = *staged(neighbour());
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    device::await_copies();
}

// A barrier after the start of a copy does not order later stores to its source, which is read until the copy is awaited.
KERNEL(copy_of_what_another_changes, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    __syncthreads();
    packet(params.input, neighbour())[2] = -1.0f;
    __syncthreads();
    device::await_copies();
    store(params, threadIdx.x);
}

KERNEL(copy_of_what_it_changes, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));  // fault: changed
    packet(params.input, threadIdx.x)[2] = -1.0f;
    device::await_copies();
    store(params, threadIdx.x);
}

KERNEL(copy_of_what_is_stored_meanwhile, TestParams, 1024, 1) {
    if (threadIdx.x < 32) device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    __syncthreads();
    if (threadIdx.x >= 32) packet(params.input, threadIdx.x - 32)[2] = -1.0f;
    device::await_copies();
}

KERNEL(copy_of_nothing, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.output, threadIdx.x));  // fault: nothing
    device::await_copies();
}

KERNEL(copy_past_the_end, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x + 1));  // fault: past
    device::await_copies();
}

KERNEL(copy_from_misaligned, TestParams, 1024, 1) {
    device::copy128_async(staged(0), params.input + 1);  // fault: from
    device::await_copies();
}

KERNEL(copy_to_misaligned, TestParams, 1024, 1) {
    device::copy128_async(staged(0) + 2, params.input);  // fault: to
    device::await_copies();
}

KERNEL(copy_to_global, TestParams, 1024, 1) {
    device::copy128_async(packet(params.output, threadIdx.x), packet(params.input, threadIdx.x));  // fault: global
    device::await_copies();
}

KERNEL(copy_from_shared, TestParams, 1024, 1) {
    Numbers{}.store(staged(threadIdx.x));
    device::copy128_async(staged(blockDim.x + threadIdx.x), staged(threadIdx.x));  // fault: shared
    device::await_copies();
}

KERNEL(copy_from_stack, TestParams, 1024, 1) {
    Numbers mine = Numbers::load(packet(params.input, threadIdx.x));
    device::copy128_async(staged(threadIdx.x), &mine);  // fault: stack
    device::await_copies();
}

// Thread i copies packet i · count to the packet of the same index. The kernel below does the same through registers, with the same
// accesses.
KERNEL(copy_stride, TestParams, 1024, 1) {
    const uint32_t i = threadIdx.x * static_cast<uint32_t>(params.count);
    device::copy128_async(staged(i), packet(params.input, i));
    device::await_copies();
}

KERNEL(copy_stride_by_registers, TestParams, 1024, 1) {
    const uint32_t i = threadIdx.x * static_cast<uint32_t>(params.count);
    Numbers::load(packet(params.input, i)).store(staged(i));
}

// A pipeline of two groups: while one is read, the next is in flight.
KERNEL(copy_sound_groups, TestParams, 1024, 1) {
    const uint32_t halves = 2;
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    device::commit_copies();
    for (uint32_t half = 0; half < halves; ++half) {
        if (half + 1 < halves) {
            const uint32_t next = (half + 1) * blockDim.x + threadIdx.x;
            device::copy128_async(staged(next), packet(params.input, next));
        }
        // The last group is empty, but counts as a group.
        device::commit_copies();
        device::await_copies<1>();
        __syncthreads();
        Numbers::load(staged(half * blockDim.x + neighbour())).store(packet(params.output, half * blockDim.x + threadIdx.x));
    }
}

// `await_copies` also awaits copies that are not committed, and removes all groups.
KERNEL(copy_sound_all, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    device::commit_copies();
    device::copy128_async(staged(blockDim.x + threadIdx.x), packet(params.input, blockDim.x + threadIdx.x));
    device::await_copies();
    device::copy128_async(staged(2 * blockDim.x + threadIdx.x), packet(params.input, 2 * blockDim.x + threadIdx.x));
    device::commit_copies();
    store(params, threadIdx.x);
    store(params, blockDim.x + threadIdx.x);
    device::await_copies<0>();
    store(params, 2 * blockDim.x + threadIdx.x);
}

KERNEL(copy_of_newest_group, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    device::commit_copies();
    device::copy128_async(staged(blockDim.x + threadIdx.x), packet(params.input, threadIdx.x));
    device::commit_copies();
    device::await_copies<1>();
    store(params, threadIdx.x);
    const float value = *staged(blockDim.x + threadIdx.x);  // fault: newest
    device::await_copies<0>();
    params.output[threadIdx.x] = value;
}

KERNEL(copy_of_no_group, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    device::await_copies<0>();
    const float value = *staged(threadIdx.x);  // fault: uncommitted
    device::await_copies();
    params.output[threadIdx.x] = value;
}

// The second copy is started after the group is committed.
KERNEL(copy_behind_a_group, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    device::commit_copies();
    device::copy128_async(staged(blockDim.x + threadIdx.x), packet(params.input, threadIdx.x));
    device::await_copies<0>();
    store(params, threadIdx.x);
    const float value = *staged(blockDim.x + threadIdx.x);  // fault: behind
    device::await_copies();
    params.output[threadIdx.x] = value;
}

KERNEL(copy_group_over_unawaited, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    device::commit_copies();
    device::await_copies<1>();
    device::copy128_async(staged(threadIdx.x), packet(params.input, neighbour()));  // fault: reused
    device::commit_copies();
    device::await_copies<0>();
    store(params, threadIdx.x);
}

KERNEL(copy_group_at_the_end, TestParams, 1024, 1) {
    device::copy128_async(staged(threadIdx.x), packet(params.input, threadIdx.x));
    device::commit_copies();
    device::copy128_async(staged(blockDim.x + threadIdx.x), packet(params.input, threadIdx.x));  // fault: pending
    device::commit_copies();
    device::await_copies<1>();
    store(params, threadIdx.x);
}
