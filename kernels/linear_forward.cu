// The masked softmax loss over hidden states [N, H] and a head [V, H], without logits. Row t with token set C, target y
// and hidden state h, at temperature τ and with share s of the result, has scores z_v = h·W_v + b_v and
//
//     loss_t = s·(ln Σ_{v ∈ C} exp(z_v/τ) − z_y/τ),    gradient_t = Σ_{v ∈ C} p_v W_v − W_y
//
// the loss times τ where the convention says so, the gradient as it stands, in f32 (linear_backward.cu scales it). Rows
// of a group have their scores already, and leave p_v − [v = y] for the product that makes their gradient. Statistics
// come along where no temperature waits for them (linear_statistics.cu).
//
// Launch: a block takes every gridDim-th row, or part of a ragged row with a long set, and one at a time. Shared memory
// holds the block's sums, what `block` needs, 2·tile_rows + warps numbers and, where they fit, a hidden state and tile_rows
// head rows.
//
// Bytes moved: each head row of a ragged row once (twice where no tile fits), its hidden state once (once a tile where it
// does not fit); 4 H of gradient written (and read and written again for each further tile); of a row in parts the hidden
// state once a part, 4 H + 32 a part written and read, and the target's head row once more; 4 a score of a group, twice,
// 4 for the error (and its rounded copy); 4 a token, and its bias; 32 a row.

#include "linear_pass.cuh"

namespace {

template <class T>
class LinearForward : LinearPass<T> {
public:
    using LinearPass<T>::LinearPass;

    __device__ __forceinline__ void run() {
        const double temperature = this->previous();
        const uint32_t items = params.parts.items(batch);
        for (uint32_t i = blockIdx.x; i < items; i += gridDim.x) {
            const RowPart item = params.parts.item(batch, i);
            const LinearRow row = LinearRow::load(batch.rows + item.row);
            if (item.row < batch.grouped) {
                add(*totals.of_block, row, take_grouped(row, static_cast<float>(1.0 / temperature)), temperature);
            } else {
                take_ragged(item, row, temperature);
            }
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

    // Which of the gradients: of rows, and behind them of parts.
    __device__ __forceinline__ float* gradient(uint64_t index, const LinearRow& row) const {
        return params.gradient && row.counts() ? params.gradient + index * params.gradient_stride : nullptr;
    }

    __device__ __forceinline__ void take_ragged(const RowPart& item, const LinearRow& row, double temperature) const {
        const float inverse_temperature = static_cast<float>(1.0 / temperature);
        RaggedRow<T> ragged(batch, row, this->room);
        if (item.in_parts && !ragged.narrow(item.part, params.parts.tokens)) return;
        const uint32_t first = batch.row_count + (item.row - batch.grouped) * params.parts.most;
        float* unscaled = gradient(item.in_parts ? first + item.part : item.row, row);
        Scored scored = ragged.compute(inverse_temperature, unscaled);
        if (!item.in_parts) {
            add(*totals.of_block, row, scored, temperature);
            return;
        }
        const PartsOfRow parts = this->parts_of(item.row, ragged.size());
        // The block that comes last puts the row together.
        if (!this->leave(item, scored, parts.count)) return;
        scored = parts.measured(row.rank / params.parts.tokens);
        scored.softmax = Softmax::of(parts.others({inverse_temperature}), scored.target, inverse_temperature);
        if (float* merged = gradient(item.row, row)) {
            const Errors weigh = Errors::of(scored.softmax, inverse_temperature, row.rank);
            ragged.merge(parts, weigh, gradient(first, row), params.gradient_stride, merged);
        }
        BlockSums sums = {};
        add(sums, row, scored, temperature);
        this->publish(item.row, sums, BlockSums::length);
    }

    __device__ __forceinline__ void add(BlockSums& sums, const LinearRow& row, const Scored& scored,
                                        double temperature) const {
        if (row.in_statistics) this->add_statistics(sums, scored);
        if (threadIdx.x != 0 || !row.counts()) return;
        const double value = row.share * (params.times_temperature ? temperature : 1.0) * scored.softmax.loss();
        if (params.losses) {
            params.losses[row.position] = static_cast<float>(value);
        } else {
            sums.loss += value;
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

KERNEL(linear_forward_f32, LinearForwardParams, 512, 2) { LinearForward<float>(params).run(); }
KERNEL(linear_forward_f16, LinearForwardParams, 512, 2) { LinearForward<__half>(params).run(); }
KERNEL(linear_forward_bf16, LinearForwardParams, 512, 2) { LinearForward<__nv_bfloat16>(params).run(); }
