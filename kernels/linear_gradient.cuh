// The second phase of linear_forward.cu: from scores and τ to the loss of rows and to columns of their unscaled gradient. With
// m the largest score of a row but the target's, e_v = exp((z_v − m)/τ) and E the sum of all e_v but the target's,
//
//     gradient = Σ_{v ≠ y} e_v (W_v − W_y)/(E + e_y)
//
// so that nothing must be known of a row but m before its head rows are read once more, neither p_y − 1 nor a small p_v is a
// difference that loses digits, and no target is so strong that the others' e_v have none in f16. The GEMM is of e_v that
// are rounded to the type of the head, and W_y is taken as often as these add up to: what all W have in common cancels.
#pragma once

#include <cfloat>

#include "linear_phase.cuh"

// What the e_v are multiplied by before they are rounded to a type for the tensor cores: in f16 a tail of tokens of 2⁻²⁵ each
// would be rounded to 0 together.
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

    // Takes an item: columns of the head are the rows of a GEMM and rows its columns, summed over a slice of the tokens.
    __device__ __forceinline__ void take(const LinearItem* address) const {
        this->keep(address);
        const LinearItem& item = shared.item;
        keep_maxima_and_tokens();
        const Shape shape(item, params.stage_bytes);
        clear_padding(shape);
        BlockGemm<T> gemm(item.count, item.rows);
        const RowLanes lanes(item.rows, blockDim.x);
        // Of many thousands of terms. And what it is more than the sum of the rounded ones.
        double others = 0.0;
        float rest = 0.0f;
        uint32_t rank = 0;
        float maximum = 0.0f;
        if (lanes.row < item.rows) {
            rank = batch.rows[this->row_index(lanes.row)].rank - shared.group.first_rank - item.inner_first;
            maximum = shared.maximum[lanes.row];
        }
        const Exponential exponential(maximum, inverse_temperature);
        const auto length = [&](uint32_t s) { return smaller(shape.tokens, item.inner_count - s * shape.tokens); };
        this->pipeline(
            (item.inner_count + shape.tokens - 1) / shape.tokens,
            [&](uint32_t s) { load(shape, this->stage(s), s * shape.tokens, length(s)); },
            [&](uint32_t s) {
                const uint32_t tokens = length(s), depth = round_up(tokens, 16);
                const float* scores = reinterpret_cast<const float*>(this->stage(s) + shape.tokens * shape.head_pitch);
                if (lanes.row < item.rows) {
                    float sum = 0.0f;
#pragma unroll 4
                    for (uint32_t i = lanes.lane; i < depth; i += lanes.lanes) {
                        float e = 0.0f;
                        if (i < tokens && s * shape.tokens + i != rank) {
                            e = exponential(scores[lanes.row * shape.score_pitch + i]);
                        }
                        sum += e;
                        const T rounded = number::narrow<T>(e * ExponentialScale<T>::up);
                        if (rounds) rest += e - number::widen(rounded) * ExponentialScale<T>::down;
                        exponentials()[lanes.row * shape.exponential_pitch + i] = rounded;
                    }
                    others += sum;
                }
                if (item.count == 0) return;
                // Every warp multiplies by the exponentials of all rows.
                __syncthreads();
                gemm.template add<true>(this->stage(s), shape.head_pitch, exponentials(), shape.exponential_pitch, depth);
            });
        gemm.store(this->tile(), item.rows);
        others = lanes.reduce(reduce::Sum<double>(), others);
        if (rounds) rest = lanes.reduce(reduce::Sum<float>(), rest);
        // The zeros where they go are another thread's.
        __syncthreads();
        if (lanes.row < item.rows && lanes.lane == 0) {
            float* behind = this->tile() + (lanes.row + 1) * gemm.pitch() - 4;
            behind[0] = static_cast<float>(others);
            behind[1] = static_cast<float>(others - rest);
        }
        if (this->add_up_tile(gemm)) write_rows(gemm.pitch());
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

    // A stage: head rows of some tokens and, behind them, those tokens' scores, row by row. Pitches are in elements.
    struct Shape {
        uint32_t tokens;
        uint32_t head_pitch;
        uint32_t score_pitch;
        uint32_t exponential_pitch;

        __device__ __forceinline__ Shape(const LinearItem& item, uint32_t stage_bytes) {
            constexpr uint32_t apart = sizeof(Packet<T>);
            const uint32_t of_head = item.count == 0 ? 0 : round_up(item.count, 16) * sizeof(T) + apart;
            const uint32_t by_stage = (stage_bytes - apart * item.rows) / (of_head + sizeof(float) * item.rows);
            const uint32_t by_exponentials = (LinearShared::exponentials_bytes / round_up(item.rows, 8) - apart) / sizeof(T);
            tokens = smaller(smaller(by_stage, by_exponentials) / 16 * 16, round_up(item.inner_count, 16));
            head_pitch = of_head / sizeof(T);
            score_pitch = tokens + Packet<float>::size;
            exponential_pitch = tokens + packet;
        }
    };

    // What the gradient of a row is made of, besides sums.
    struct RowScale {
        uint32_t position;
        // Of the target, among the rows of the head.
        uint32_t token;
        // The sum of the rounded e_v but the target's.
        float others;
        // 0 under a target that is far above all others.
        float scale;
        // Whether the row has a loss.
        bool counts;
    };
    static_assert(sizeof(RowScale) * LinearShared::most_rows <= LinearShared::exponentials_bytes, "they lie over the exponentials");

    __device__ __forceinline__ T* exponentials() const { return reinterpret_cast<T*>(shared.exponentials); }

    __device__ __forceinline__ void keep_maxima_and_tokens() const {
        const LinearItem& item = shared.item;
        const LinearGroup& group = shared.group;
        if (batch.tokens && item.count > 0) {
            for (uint32_t i = threadIdx.x; i < item.inner_count; i += blockDim.x) {
                shared.tokens[i] = batch.token(group, item.inner_first + i);
            }
        }
        for (uint32_t r = threadIdx.x; r < item.rows; r += blockDim.x) {
            // −∞ apart from −∞ is no number.
            shared.maximum[r] = fmaxf(from_ordered_bits(batch.rows[this->row_index(r)].maximum), -FLT_MAX);
        }
        // Every thread copies head rows of any token, and looks at the maximum of any row.
        __syncthreads();
    }

    // Clears the exponentials of rows that are no row's, but fill up a fragment.
    __device__ __forceinline__ void clear_padding(const Shape& shape) const {
        const uint32_t rows = shared.item.rows, packets = shape.exponential_pitch / packet;
        for (uint32_t i = rows * packets + threadIdx.x; i < round_up(rows, 8) * packets; i += blockDim.x) {
            device::store128(exponentials() + i * packet, uint4{0, 0, 0, 0});
        }
    }

    // The head rows of the slice's tokens from `begin` on, zeros for those that fill up a fragment, and the tokens' scores.
    __device__ __forceinline__ void load(const Shape& shape, T* stage, uint32_t begin, uint32_t tokens) const {
        const LinearItem& item = shared.item;
        const LinearGroup& group = shared.group;
        const uint32_t first = item.inner_first + begin, of_width = item.first / packet;
        const uint32_t whole_first = group.first_token + first;
        const uint32_t* listed = batch.tokens ? shared.tokens + begin : nullptr;
        this->for_each_packet(round_up(tokens, 16), round_up(item.count, 16) / packet, [&](uint32_t index, uint32_t p) {
            T* to = stage + index * shape.head_pitch + p * packet;
            if (index >= tokens) {
                device::store128(to, uint4{0, 0, 0, 0});
                return;
            }
            const uint32_t token = listed ? listed[index] : whole_first + index;
            copy_packet(to, batch.template head_row<T>(token), of_width + p);
        });
        float* scores = reinterpret_cast<float*>(stage + shape.tokens * shape.head_pitch);
        const uint64_t stride = group.stride();
        const float* from = params.scores + group.scores + item.first_row * stride + first;
        this->for_each_packet(item.rows, (tokens + 3) / 4, [&](uint32_t r, uint32_t p) {
            device::copy128_async(scores + r * shape.score_pitch + 4 * p, from + r * stride + 4 * p);
        });
    }

    // Writes the loss of rows and their gradient, from the sums in `tile`.
    __device__ __forceinline__ void write_rows(uint32_t pitch) const {
        const LinearItem& item = shared.item;
        RowScale* scales = reinterpret_cast<RowScale*>(shared.exponentials);
        T* direct = static_cast<T*>(params.hidden_gradient);
        for (uint32_t r = threadIdx.x; r < item.rows; r += blockDim.x) {
            const uint32_t index = this->row_index(r);
            const LinearRow row = LinearRow::load(batch.rows + index);
            const float* behind = this->tile() + (r + 1) * pitch - 4;
            const float maximum = shared.maximum[r];
            const Softmax softmax = Softmax::of({maximum, behind[0]}, params.targets[index], inverse_temperature);
            if (item.first == 0) write_loss(index, row, softmax);
            float scale = softmax.inverse_sum() * expf((maximum - softmax.maximum) * inverse_temperature);
            if (direct) scale *= row.share * (params.times_temperature ? 1.0f : inverse_temperature);
            scales[r] = {row.position, batch.token(shared.group, row.rank - shared.group.first_rank), behind[1],
                         scale, row.counts()};
        }
        // Every thread takes packets of any row.
        __syncthreads();
        this->for_each_packet(item.rows, (item.count + packet - 1) / packet, [&](uint32_t r, uint32_t p) {
            const RowScale row = scales[r];
            // Nobody looks at the unscaled gradient of a row without a loss; the gradient itself is 0.
            if (!direct && !row.counts) return;
            const uint32_t of_width = item.first / packet + p;
            const Packet<T> of_target = batch.template head_row<T>(row.token).load(of_width);
            float values[packet];
#pragma unroll
            for (uint32_t k = 0; k < packet; k += 4) {
                const Packet<float> sums = Packet<float>::load(this->tile() + r * pitch + p * packet + k);
#pragma unroll
                for (uint32_t j = 0; j < 4; ++j) values[k + j] = sums.values[j];
            }
#pragma unroll
            for (uint32_t k = 0; k < packet; ++k) {
                const float sum = values[k] * ExponentialScale<T>::down - row.others * number::widen(of_target.values[k]);
                values[k] = row.counts ? sum * row.scale : 0.0f;
            }
            if (direct) {
                store(direct + row.position * static_cast<uint64_t>(batch.width), of_width, values);
            } else {
                const uint64_t index = this->row_index(r);
                store(params.gradient + index * params.gradient_stride + of_width * packet, values);
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

    // Writes the softmax of a row, for the gradient of the head, and its loss.
    __device__ __forceinline__ void write_loss(uint32_t index, const LinearRow& row, const Softmax& softmax) const {
        params.softmaxes[index] = softmax;
        const double factor = row.share * (params.times_temperature ? temperature : 1.0);
        const double loss = row.counts() ? factor * softmax.loss() : 0.0;
        params.row_losses[index] = loss;
        if (params.losses) params.losses[row.position] = static_cast<float>(loss);
    }
};
