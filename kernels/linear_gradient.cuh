// The second phase of linear_forward.cu: from the scores and τ to the loss of each row and the gradient of its hidden
// state. With m the largest score of a row other than the target's, e_v = exp((z_v − m)/τ) and E = Σ_{v ≠ y} e_v,
//
//     Σ_{v ∈ C} p_v W_v − W_y = Σ_{v ≠ y} e_v (W_v − W_y)/(E + e_y)
//
// This form has three advantages. Before the head rows are read again, only m must be known of a row, not its
// normaliser. Neither p_y − 1 nor a small p_v is a difference that cancels. And however likely the target is, the
// largest e_v of the others is 1, so they do not underflow in f16.
//
// The GEMM multiplies by e_v that are rounded to the type of the head. W_y is subtracted with the sum of the rounded
// e_v as its factor, so that what all W_v have in common cancels in spite of the rounding.
#pragma once

#include <cfloat>

#include "linear_phase.cuh"

// The factor of the e_v before they are rounded to the type of the tensor cores, and its inverse. In f16, every e_v up
// to 2⁻²⁵ would be rounded to 0 without it, even where a tail of many such tokens has weight.
template <class T>
struct ExponentialScale {
    static constexpr float up = 1.0f, down = 1.0f;
};
template <>
struct ExponentialScale<__half> {
    static constexpr float up = 0x1p14f, down = 0x1p-14f;
};

template <class T>
class LinearGradient : LinearPhase<T> {
public:
    __device__ __forceinline__ LinearGradient(const LinearForwardParams& params, double temperature)
        : LinearPhase<T>(params), temperature(temperature), inverse_temperature(static_cast<float>(1.0 / temperature)) {}

    // Processes a gradient item, with all threads of the block. It is a GEMM whose m is the columns of the head and
    // whose n is the rows, summed over a slice of the tokens:
    //
    //     1. Load the maxima of the rows and, if the set is listed, the tokens of the slice.
    //     2. Pipeline the slice through shared memory. A stage holds the head rows of some tokens (operand A, transposed) and the
    //        scores of these tokens. Compute e_v from the scores, add it to E, store it rounded as operand B, and accumulate.
    //     3. Reduce the split-K slices over warps and blocks, E included. Only the block that has the sums goes on.
    //     4. Subtract the target's head row, scale, and write the gradient; write the losses, if the item has the first columns.
    __device__ __forceinline__ void process(const LinearItem* address) const {
        this->load_item(address);
        const LinearItem& item = shared.item;
        load_maxima_and_tokens();
        const StageLayout layout(item, params.stage_bytes);
        clear_padding(layout);
        BlockGemm<T> gemm(item.count, item.rows);
        const RowLanes lanes(item.rows, blockDim.x);
        // E of this thread's tokens, in f64 because it may have many thousands of terms, and E minus the sum of the
        // rounded e_v.
        double others = 0.0;
        float rounding_error = 0.0f;
        uint32_t rank = 0;
        float maximum = 0.0f;
        if (lanes.row < item.rows) {
            rank = batch.rows[this->row_index(lanes.row)].rank - shared.group.first_rank - item.inner_first;
            maximum = shared.maximum[lanes.row];
        }
        const Exponential exponential(maximum, inverse_temperature);
        const auto length = [&](uint32_t s) { return smaller(layout.tokens, item.inner_count - s * layout.tokens); };
        this->pipeline(
            (item.inner_count + layout.tokens - 1) / layout.tokens,
            [&](uint32_t s) { load(layout, this->stage(s), s * layout.tokens, length(s)); },
            [&](uint32_t s) {
                const uint32_t tokens = length(s), depth = round_up(tokens, 16);
                const float* scores = reinterpret_cast<const float*>(this->stage(s) + layout.tokens * layout.head_pitch);
                if (lanes.row < item.rows) {
                    float sum = 0.0f;
#pragma unroll 4
                    for (uint32_t i = lanes.lane; i < depth; i += lanes.lanes) {
                        float e = 0.0f;
                        if (i < tokens && s * layout.tokens + i != rank) {
                            e = exponential(scores[lanes.row * layout.score_pitch + i]);
                        }
                        sum += e;
                        const T rounded = number::narrow<T>(e * ExponentialScale<T>::up);
                        if (rounds) rounding_error += e - number::widen(rounded) * ExponentialScale<T>::down;
                        exponentials()[lanes.row * layout.exponential_pitch + i] = rounded;
                    }
                    others += sum;
                }
                if (item.count == 0) return;
                // Every warp reads the exponentials of all rows.
                __syncthreads();
                gemm.template add<true>(this->stage(s), layout.head_pitch, exponentials(), layout.exponential_pitch, depth);
            });
        gemm.store(this->tile(), item.rows);
        others = lanes.reduce(reduce::Sum<double>(), others);
        if (rounds) rounding_error = lanes.reduce(reduce::Sum<float>(), rounding_error);
        // BlockGemm::store has set this padding to zeros in another thread.
        __syncthreads();
        if (lanes.row < item.rows && lanes.lane == 0) {
            float* row_sums = this->tile() + (lanes.row + 1) * gemm.pitch() - 4;
            row_sums[0] = static_cast<float>(others);
            row_sums[1] = static_cast<float>(others - rounding_error);
        }
        if (this->reduce_tile(gemm)) write_rows(gemm.pitch());
    }

private:
    using LinearPhase<T>::params;
    using LinearPhase<T>::batch;
    using LinearPhase<T>::shared;
    using LinearPhase<T>::packet;
    using LinearPhase<T>::warps;
    static constexpr bool rounds = sizeof(T) < sizeof(float);
    double temperature;
    float inverse_temperature;

    // The layout of a pipeline stage: the item's columns of the head rows of `tokens` tokens [tokens, head_pitch],
    // followed by the scores of these tokens [rows, score_pitch] in f32. Pitches are in elements.
    struct StageLayout {
        uint32_t tokens;
        uint32_t head_pitch;
        uint32_t score_pitch;
        // The row pitch of `exponentials`, which is not part of the stage.
        uint32_t exponential_pitch;

        __device__ __forceinline__ StageLayout(const LinearItem& item, uint32_t stage_bytes) {
            constexpr uint32_t padding = sizeof(Packet<T>);
            const uint32_t head_bytes = item.count == 0 ? 0 : round_up(item.count, 16) * sizeof(T) + padding;
            const uint32_t by_stage = (stage_bytes - padding * item.rows) / (head_bytes + sizeof(float) * item.rows);
            const uint32_t by_exponentials = (LinearShared::exponentials_bytes / round_up(item.rows, 8) - padding) / sizeof(T);
            tokens = smaller(smaller(by_stage, by_exponentials) / 16 * 16, round_up(item.inner_count, 16));
            head_pitch = head_bytes / sizeof(T);
            score_pitch = tokens + Packet<float>::size;
            exponential_pitch = tokens + packet;
        }
    };

    // What is needed of a row to compute its gradient from the sums of the GEMM. It reuses the memory of the
    // exponentials.
    struct RowScale {
        uint32_t position;
        // The target's row of the head.
        uint32_t token;
        // The sum of the rounded e_v of the tokens other than the target.
        float others;
        // The factor of the whole gradient. It underflows to 0 if the target is far above all others.
        float scale;
        bool has_loss;
    };
    static_assert(sizeof(RowScale) * LinearShared::max_rows <= LinearShared::exponentials_bytes,
                  "RowScale reuses the memory of the exponentials");

    // [item.rows rounded up to 8, exponential_pitch]: the rounded e_v of the tokens of a stage, operand B of the GEMM.
    __device__ __forceinline__ T* exponentials() const { return reinterpret_cast<T*>(shared.exponentials); }

    __device__ __forceinline__ void load_maxima_and_tokens() const {
        const LinearItem& item = shared.item;
        const LinearGroup& group = shared.group;
        if (batch.tokens && item.count > 0) {
            for (uint32_t i = threadIdx.x; i < item.inner_count; i += blockDim.x) {
                shared.tokens[i] = batch.token(group, item.inner_first + i);
            }
        }
        for (uint32_t r = threadIdx.x; r < item.rows; r += blockDim.x) {
            // If all scores are −∞, z − m must not be NaN.
            shared.maximum[r] = fmaxf(from_ordered_bits(batch.rows[this->row_index(r)].maximum), -FLT_MAX);
        }
        // Every thread copies head rows of any token, and reads the maximum of any row.
        __syncthreads();
    }

    // Sets the rows of `exponentials` that pad the last fragment to zeros.
    __device__ __forceinline__ void clear_padding(const StageLayout& layout) const {
        const uint32_t rows = shared.item.rows, packets = layout.exponential_pitch / packet;
        for (uint32_t i = rows * packets + threadIdx.x; i < round_up(rows, 8) * packets; i += blockDim.x) {
            device::store128(exponentials() + i * packet, uint4{0, 0, 0, 0});
        }
    }

    // Starts the copies of a stage: head rows and scores of `tokens` tokens of the slice from `begin` on. Head rows
    // that pad the last fragment are set to zeros.
    __device__ __forceinline__ void load(const StageLayout& layout, T* stage, uint32_t begin, uint32_t tokens) const {
        const LinearItem& item = shared.item;
        const LinearGroup& group = shared.group;
        const uint32_t first = item.inner_first + begin, first_packet = item.first / packet;
        const uint32_t first_token = group.first_token + first;
        const uint32_t* listed = batch.tokens ? shared.tokens + begin : nullptr;
        this->for_each_packet(round_up(tokens, 16), round_up(item.count, 16) / packet, [&](uint32_t index, uint32_t p) {
            T* to = stage + index * layout.head_pitch + p * packet;
            if (index >= tokens) {
                device::store128(to, uint4{0, 0, 0, 0});
                return;
            }
            const uint32_t token = listed ? listed[index] : first_token + index;
            copy_packet(to, batch.template head_row<T>(token), first_packet + p);
        });
        float* scores = reinterpret_cast<float*>(stage + layout.tokens * layout.head_pitch);
        const uint64_t stride = group.stride();
        const float* from = params.scores + group.scores + item.first_row * stride + first;
        this->for_each_packet(item.rows, (tokens + 3) / 4, [&](uint32_t r, uint32_t p) {
            device::copy128_async(scores + r * layout.score_pitch + 4 * p, from + r * stride + 4 * p);
        });
    }

    // Writes the losses and the gradients of the item's rows from the reduced sums in `tile`, with all threads of the
    // block.
    __device__ __forceinline__ void write_rows(uint32_t pitch) const {
        const LinearItem& item = shared.item;
        RowScale* scales = reinterpret_cast<RowScale*>(shared.exponentials);
        T* direct = static_cast<T*>(params.hidden_gradient);
        for (uint32_t r = threadIdx.x; r < item.rows; r += blockDim.x) {
            const uint32_t index = this->row_index(r);
            const LinearRow row = LinearRow::load(batch.rows + index);
            const float* row_sums = this->tile() + (r + 1) * pitch - 4;
            const float maximum = shared.maximum[r];
            const Softmax softmax = Softmax::of({maximum, row_sums[0]}, params.targets[index], inverse_temperature);
            if (item.first == 0) write_loss(index, row, softmax);
            float scale = softmax.inverse_sum() * expf((maximum - softmax.maximum) * inverse_temperature);
            if (direct) scale *= row.loss_weight * (params.times_temperature ? 1.0f : inverse_temperature);
            scales[r] = {row.position, batch.token(shared.group, row.rank - shared.group.first_rank), row_sums[1],
                         scale, row.has_loss()};
        }
        // Every thread computes packets of any row.
        __syncthreads();
        this->for_each_packet(item.rows, (item.count + packet - 1) / packet, [&](uint32_t r, uint32_t p) {
            const RowScale row = scales[r];
            // The unscaled gradient of a row without a loss is never read. The gradient itself must be 0.
            if (!direct && !row.has_loss) return;
            const uint32_t first_packet = item.first / packet + p;
            const Packet<T> target_packet = batch.template head_row<T>(row.token).load(first_packet);
            float values[packet];
#pragma unroll
            for (uint32_t k = 0; k < packet; k += 4) {
                const Packet<float> sums = Packet<float>::load(this->tile() + r * pitch + p * packet + k);
#pragma unroll
                for (uint32_t j = 0; j < 4; ++j) values[k + j] = sums.values[j];
            }
#pragma unroll
            for (uint32_t k = 0; k < packet; ++k) {
                const float sum = values[k] * ExponentialScale<T>::down - row.others * number::widen(target_packet.values[k]);
                values[k] = row.has_loss ? sum * row.scale : 0.0f;
            }
            if (direct) {
                store(direct + row.position * static_cast<uint64_t>(batch.width), first_packet, values);
            } else {
                const uint64_t index = this->row_index(r);
                store(params.gradient + index * params.gradient_stride + first_packet * packet, values);
            }
        });
    }

    __device__ __forceinline__ static void store(float* to, const float (&values)[packet]) {
#pragma unroll
        for (uint32_t k = 0; k < packet; k += 4) {
            Packet<float>{values[k], values[k + 1], values[k + 2], values[k + 3]}.store(to + k);
        }
    }

    __device__ __forceinline__ void store(T* row, uint32_t index, const float (&values)[packet]) const {
        Packet<T> rounded;
#pragma unroll
        for (uint32_t k = 0; k < packet; ++k) rounded.values[k] = number::narrow<T>(values[k]);
        store_packet(row, batch.width, index, rounded);
    }

    // Writes the softmax statistics of a row, which the gradient of the head needs, and its loss.
    __device__ __forceinline__ void write_loss(uint32_t index, const LinearRow& row, const Softmax& softmax) const {
        params.softmaxes[index] = softmax;
        const double factor = row.loss_weight * (params.times_temperature ? temperature : 1.0);
        const double loss = row.has_loss() ? factor * softmax.loss() : 0.0;
        params.row_losses[index] = loss;
        if (params.losses) params.losses[row.position] = static_cast<float>(loss);
    }
};
