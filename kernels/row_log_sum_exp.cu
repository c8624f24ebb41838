// The log-sum-exp of each row over its valid tokens C, scaled by the inverse temperature 1/τ:
//
//     out[r] = ln Σ_{v ∈ C(set_r)} exp(logits[position_r, v] / τ)
//
// A row without valid tokens gives −∞. Sums are in f32 whatever the logits are.
//
// Launch: blocks walk over the rows, one at a time; whole warps, `scratch_bytes` of shared memory.
// Bytes moved: 12 a row, 4 a valid token (none for the whole vocabulary), each valid logit once, 4 a row written.

#include "number.cuh"
#include "reduce.cuh"
#include "token_sets.cuh"

// Mirrors launch::RowLogSumExpParams.
struct RowLogSumExpParams {
    const void* logits;
    const Row* rows;
    float* out;
    TokenSets sets;
    uint64_t row_stride;
    uint32_t row_count;
    float inverse_temperature;
};
static_assert(sizeof(RowLogSumExpParams) == 64, "mirrors launch::RowLogSumExpParams");
static_assert(offsetof(RowLogSumExpParams, rows) == 8 && offsetof(RowLogSumExpParams, out) == 16, "mirrors launch");
static_assert(offsetof(RowLogSumExpParams, sets) == 24 && offsetof(RowLogSumExpParams, row_stride) == 48, "mirrors launch");
static_assert(offsetof(RowLogSumExpParams, row_count) == 56, "mirrors launch");
static_assert(offsetof(RowLogSumExpParams, inverse_temperature) == 60, "mirrors launch");

namespace {

template <class T>
__device__ __forceinline__ void row_log_sum_exp(const RowLogSumExpParams& params) {
    using reduce::LogSumExp;
    for (uint32_t r = blockIdx.x; r < params.row_count; r += gridDim.x) {
        const Row row = params.rows[r];
        // The product passes 2³¹ on real batches.
        const T* logits = static_cast<const T*>(params.logits) + row.position * params.row_stride;

        LogSumExp::Value value = LogSumExp::identity();
        const uint32_t end = params.sets.end(row.set);
        for (uint32_t i = params.sets.begin(row.set) + threadIdx.x; i < end; i += blockDim.x) {
            const float logit = number::widen(logits[params.sets.token(i)]);
            value = LogSumExp::combine(value, LogSumExp::of(logit * params.inverse_temperature));
        }
        value = reduce::block<LogSumExp>(value, device::shared_memory());
        if (threadIdx.x == 0) params.out[r] = value.logarithm();
    }
}

}  // namespace

KERNEL(row_log_sum_exp_f32, RowLogSumExpParams, 1024) { row_log_sum_exp<float>(params); }
KERNEL(row_log_sum_exp_f16, RowLogSumExpParams, 1024) { row_log_sum_exp<__half>(params); }
KERNEL(row_log_sum_exp_bf16, RowLogSumExpParams, 1024) { row_log_sum_exp<__nv_bfloat16>(params); }
