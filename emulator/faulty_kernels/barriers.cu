// Barriers and warp operations that not all threads reach.

#include "params.cuh"

namespace {

constexpr unsigned full_warp_mask = 0xffffffffu;

}  // namespace

KERNEL(barrier_sound, TestParams, 1024, 1) {
    for (uint32_t turn = 0; turn < params.count; ++turn) __syncthreads();
    const int odd = __syncthreads_count(threadIdx.x % 2);
    const int any = __syncthreads_or(threadIdx.x == 7);
    const int all = __syncthreads_and(threadIdx.x < blockDim.x);
    params.output[threadIdx.x] = static_cast<float>(odd * 100 + any * 10 + all);
}

KERNEL(barrier_early_return, TestParams, 1024, 1) {
    if (threadIdx.x == 9) return;
    __syncthreads();  // fault: return
}

KERNEL(barrier_in_a_branch, TestParams, 1024, 1) {
    if (threadIdx.x < 32) __syncthreads();  // fault: branch
}

KERNEL(barrier_at_two_lines, TestParams, 1024, 1) {
    if (threadIdx.x < 32) {
        __syncthreads();  // fault: lines
        params.output[threadIdx.x] = 1.0f;
    } else {
        __syncthreads();
        params.output[threadIdx.x] = 2.0f;
    }
}

KERNEL(barrier_fewer_turns, TestParams, 1024, 1) {
    for (uint32_t turn = 0; turn < threadIdx.x / 32 + 1; ++turn) {
        __syncthreads();  // fault: turns
    }
}

KERNEL(barrier_of_grid_alone, TestParams, 1024, 1) {
    cooperative_groups::this_grid().sync();  // fault: grid
}

KERNEL(barrier_grid_early_return, TestParams, 1024, 1) {
    if (blockIdx.x == 1) return;
    cooperative_groups::this_grid().sync();  // fault: gridreturn
}

KERNEL(warp_sound, TestParams, 1024, 1) {
    const int lane = threadIdx.x % 32;
    const int from_first = __shfl_sync(full_warp_mask, lane + 1, 0);
    const int below = __shfl_up_sync(full_warp_mask, lane, 1);
    const int above = __shfl_down_sync(full_warp_mask, lane, 1);
    const double across = __shfl_xor_sync(full_warp_mask, static_cast<double>(lane), 16);
    const int in_eights = __shfl_sync(full_warp_mask, lane, 9, 8);
    const unsigned odd = __ballot_sync(full_warp_mask, lane % 2);
    const int all = __all_sync(full_warp_mask, lane < 32), any = __any_sync(full_warp_mask, lane > 31);
    const bool right = from_first == 1 && below == max(lane - 1, 0) && above == min(lane + 1, 31) && across == (lane ^ 16)
        && in_eights == lane / 8 * 8 + 1 && odd == 0xaaaaaaaau && all && !any;
    int in_half = 0;
    if (lane < 16) in_half = __shfl_xor_sync(0x0000ffffu, lane, 1);
    params.output[threadIdx.x] = right && in_half == (lane < 16 ? (lane ^ 1) : 0);
}

KERNEL(warp_lane_returned, TestParams, 1024, 1) {
    if (threadIdx.x == 3) return;
    params.output[threadIdx.x] = __shfl_xor_sync(full_warp_mask, 1.0f, 1);  // fault: returned
}

KERNEL(warp_lane_elsewhere, TestParams, 1024, 1) {
    if (threadIdx.x == 3) __syncthreads();
    else params.output[threadIdx.x] = __shfl_xor_sync(full_warp_mask, 1.0f, 1);
    __syncthreads();
}

KERNEL(warp_not_in_mask, TestParams, 1024, 1) {
    params.output[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 0);  // fault: mask
}

KERNEL(warp_masks_differ, TestParams, 1024, 1) {
    const unsigned mask = threadIdx.x == 0 ? full_warp_mask : full_warp_mask - 1;
    params.output[threadIdx.x] = __shfl_sync(mask, 1.0f, 1);  // fault: masks
}

KERNEL(warp_source_outside, TestParams, 1024, 1) {
    if (threadIdx.x < 16) params.output[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 20);  // fault: source
}

KERNEL(warp_operations_differ, TestParams, 1024, 1) {
    if (threadIdx.x == 0) params.output[0] = __ballot_sync(full_warp_mask, 1);
    else params.output[threadIdx.x] = __shfl_sync(full_warp_mask, 1.0f, 0);
}

KERNEL(endless_wait, TestParams, 1024, 1) {
    while (atomicAdd(params.counter, 0u) == 0) {
    }
}
