// The masked softmax loss over hidden states [N, H] and a head [V, H], without logits. Row t with token set C, target y
// and hidden state h, at temperature τ and with share s of the result, has scores z_v = h·W_v + b_v and
//
//     loss_t = s·(ln Σ_{v ∈ C} exp(z_v/τ) − z_y/τ),    gradient_t = Σ_{v ∈ C} p_v W_v − W_y
//
// the loss times τ where the convention says so, the gradient as it stands, in f32 (linear_backward.cu scales it). Rows
// of a group have their scores already, and leave p_v − [v = y] for the product that makes their gradient. Statistics
// come along where no temperature waits for them (linear_statistics.cu).
//
// Launch: a block takes every gridDim-th row and one row at a time. Shared memory holds the block's sums, what `block`
// needs, 2·tile_rows + warps numbers and, where they fit, a hidden state and tile_rows head rows.
//
// Bytes moved: each head row of a ragged row once (twice where no tile fits), its hidden state once (once a tile where it
// does not fit); 4 H of gradient written (and read and written again for each further tile); 4 a score of a group, twice,
// 4 for the error (and its rounded copy); 4 a token, and its bias; 32 a row.

#include "linear_pass.cuh"

namespace {

template <class T>
class LinearForward : LinearPass<T> {
public:
    using LinearPass<T>::LinearPass;

    __device__ __forceinline__ void run() {
        const double temperature = this->previous();
        for (uint32_t r = blockIdx.x; r < batch.row_count; r += gridDim.x) {
            const LinearRow row = LinearRow::load(batch.rows + r);
            const Scored scored = r < batch.grouped ? take_grouped(row, static_cast<float>(1.0 / temperature))
                                                    : take_ragged(r, row, static_cast<float>(1.0 / temperature));
            if (row.in_statistics) this->add_statistics(scored);
            add_loss(row, scored, temperature);
        }
        write_idle();
        totals.publish(0, BlockSums::length);
        if (!reduce::is_last_block(params.arrived, params.all_blocks)) return;
        totals.write_loss(params.loss);
        if (!params.statistics) return;
        const Statistics statistics = totals.statistics(params.sizes);
        if (threadIdx.x == 0) {
            *params.statistics = statistics;
            *params.temperature = temperature;
        }
    }

private:
    using LinearPass<T>::params;
    using LinearPass<T>::batch;
    using LinearPass<T>::totals;

    __device__ __forceinline__ Scored take_grouped(const LinearRow& row, float inverse_temperature) const {
        const GroupedRow<T> grouped = this->grouped(row);
        const Scored scored = grouped.compute(inverse_temperature);
        if (params.gradient) {
            T* rounded = params.errors ? static_cast<T*>(params.errors) + row.scores : nullptr;
            grouped.write_errors(Errors::of(scored.softmax, inverse_temperature, row.rank), rounded);
        }
        return scored;
    }

    __device__ __forceinline__ Scored take_ragged(uint32_t r, const LinearRow& row, float inverse_temperature) const {
        float* gradient = params.gradient && row.counts() ? params.gradient + r * params.gradient_stride : nullptr;
        return RaggedRow<T>(batch, row, this->room).compute(inverse_temperature, gradient);
    }

    __device__ __forceinline__ void add_loss(const LinearRow& row, const Scored& scored, double temperature) const {
        if (threadIdx.x != 0 || !row.counts()) return;
        const double value = row.share * (params.times_temperature ? temperature : 1.0) * scored.softmax.loss();
        if (params.losses) {
            params.losses[row.position] = static_cast<float>(value);
        } else {
            totals.of_block->loss += value;
        }
    }

    __device__ __forceinline__ void write_idle() const {
        if (!params.losses) return;
        for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < batch.idle_count; i += gridDim.x * blockDim.x) {
            params.losses[batch.idle[i]] = 0.0f;
        }
    }
};

}  // namespace

KERNEL(linear_forward_f32, LinearForwardParams, 512) { LinearForward<float>(params).run(); }
KERNEL(linear_forward_f16, LinearForwardParams, 512) { LinearForward<__half>(params).run(); }
KERNEL(linear_forward_bf16, LinearForwardParams, 512) { LinearForward<__nv_bfloat16>(params).run(); }
