// The first phase of linear_forward.cu: the scores of rows × tokens, z = h·W_v + b_v, and their maxima and moments, which τ is computed from.
#pragma once

#include "linear_phase.cuh"

template <class T>
class LinearScores : LinearPhase<T> {
public:
    using LinearPhase<T>::LinearPhase;

    // Takes an item: tokens are the rows of a GEMM and rows its columns, summed over a slice of the width.
    __device__ __forceinline__ void take(const LinearItem* address) const {
        this->keep(address);
        const LinearItem& item = shared.item;
        const Lines lines(item, params.stage_bytes);
        keep_lines(lines);
        BlockGemm<T> gemm(item.count, item.rows);
        const auto length = [&](uint32_t s) { return smaller(item.inner_count - s * lines.depth, lines.depth); };
        this->pipeline(
            (item.inner_count + lines.depth - 1) / lines.depth,
            [&](uint32_t s) { load(lines, this->stage(s), item.inner_first + s * lines.depth, round_up(length(s), step)); },
            [&](uint32_t s) {
                const T* head = this->stage(s);
                gemm.template add<false>(head, lines.pitch, head + lines.tokens * lines.pitch, lines.pitch,
                                            round_up(length(s), Fragments<T>::depth));
            });
        gemm.store(this->tile(), item.rows);
        if (!this->add_up_tile(gemm)) return;
        store_scores(gemm.pitch());
        // Lanes look at scores that other threads have added the bias to.
        __syncthreads();
        write_records(gemm.pitch());
    }

private:
    using LinearPhase<T>::params;
    using LinearPhase<T>::batch;
    using LinearPhase<T>::shared;
    using LinearPhase<T>::packet;
    using LinearPhase<T>::warps;
    // The elements of 32 bytes: a line is a multiple of them, and 16 bytes more lie between two lines.
    static constexpr uint32_t step = 2 * packet;

    // A stage: so many columns of the tokens' head rows and, behind them, of the rows' hidden states, all in whole fragments.
    struct Lines {
        uint32_t tokens;
        uint32_t count;
        uint32_t depth;
        uint32_t pitch;

        __device__ __forceinline__ Lines(const LinearItem& item, uint32_t stage_bytes) {
            tokens = round_up(item.count, 16);
            count = tokens + round_up(item.rows, 8);
            const uint32_t fits = (stage_bytes / count - sizeof(Packet<T>)) / (step * sizeof(T)) * step;
            depth = smaller(fits, round_up(item.inner_count, step));
            pitch = depth + packet;
        }
    };

    // Where the row of each line begins: null for those of no token and of no row. They lie in the place of the exponentials, which are the
    // other phase's.
    __device__ __forceinline__ const T** addresses() const { return reinterpret_cast<const T**>(shared.exponentials); }

    // Keeps the tokens, and where lines come from. Lines that come from nowhere hold zeros throughout.
    __device__ __forceinline__ void keep_lines(const Lines& lines) const {
        const LinearItem& item = shared.item;
        for (uint32_t line = threadIdx.x; line < lines.count; line += blockDim.x) {
            const uint32_t r = line - lines.tokens;
            const T* address = nullptr;
            if (line < item.count) {
                const uint32_t token = batch.token(shared.group, item.first + line);
                shared.tokens[line] = token;
                address = batch.template head_row<T>(token).values;
            } else if (line >= lines.tokens && r < item.rows) {
                address = batch.template hidden_row<T>(batch.rows[this->row_index(r)].position).values;
            }
            addresses()[line] = address;
        }
        // Every thread copies lines of any index.
        __syncthreads();
        const uint32_t padding = lines.tokens - item.count, packets = lines.pitch / packet;
        this->for_each_packet(padding + lines.count - lines.tokens - item.rows, packets, [&](uint32_t i, uint32_t p) {
            const uint32_t line = i < padding ? item.count + i : lines.tokens + item.rows + i - padding;
#pragma unroll
            for (uint32_t s = 0; s < LinearShared::stages; ++s) {
                device::store128(this->stage(s) + line * lines.pitch + p * packet, uint4{0, 0, 0, 0});
            }
        });
    }

    // Columns [begin, begin + columns) of the lines of tokens and rows, zeros behind the width.
    __device__ __forceinline__ void load(const Lines& lines, T* stage, uint32_t begin, uint32_t columns) const {
        this->for_each_packet(lines.count, columns / packet, [&](uint32_t line, uint32_t p) {
            const Vector<T> row(addresses()[line], batch.width);
            if (row.values) copy_packet(stage + line * lines.pitch + p * packet, row, begin / packet + p);
        });
    }

    // Adds the bias and writes the scores, in whole packets: what pads a row of scores is copied along with them.
    __device__ __forceinline__ void store_scores(uint32_t pitch) const {
        const LinearItem& item = shared.item;
        const uint64_t stride = shared.group.stride();
        float* scores = params.scores + shared.group.scores + item.first_row * stride + item.first;
        this->for_each_packet(item.rows, (item.count + 3) / 4, [&](uint32_t r, uint32_t p) {
            float* of_tile = this->tile() + r * pitch + 4 * p;
            Packet<float> z = Packet<float>::load(of_tile);
#pragma unroll
            for (uint32_t k = 0; k < 4; ++k) {
                const uint32_t i = 4 * p + k;
                z.values[k] = i < item.count ? z.values[k] + batch.template bias_of<T>(shared.tokens[i]) : 0.0f;
            }
            z.store(of_tile);
            z.store(scores + r * stride + 4 * p);
        });
    }

    // Writes the maximum, the moments and the target's score of each row, as far as these tokens go.
    __device__ __forceinline__ void write_records(uint32_t pitch) const {
        const LinearItem& item = shared.item;
        const LinearGroup& group = shared.group;
        const RowLanes lanes(item.rows, blockDim.x);
        const bool has_row = lanes.row < item.rows, is_first = has_row && lanes.lane == 0;
        const uint32_t index = this->row_index(has_row ? lanes.row : 0);
        const float* scores = this->tile() + (has_row ? lanes.row : 0) * pitch;
        // Of the target among these tokens, if it is there.
        const uint32_t rank = batch.rows[index].rank - group.first_rank - item.first;
        if (is_first && rank < item.count) params.targets[index] = scores[rank];
        float maximum = -INFINITY;
#pragma unroll 4
        for (uint32_t i = lanes.lane; i < item.count; i += lanes.lanes) {
            maximum = i == rank ? maximum : fmaxf(maximum, scores[i]);
        }
        maximum = lanes.reduce(reduce::Maximum(), maximum);
        if (is_first) atomicMax(&batch.rows[index].maximum, ordered_bits(maximum));
        // Where no row is in the statistics nobody looks at moments.
        if (params.sizes.rows == 0.0) return;
        const float shift = scores[0];
        Moments::Value moments = Moments().identity();
        uint32_t i = lanes.lane;
#pragma unroll 1
        for (; i + 3 * lanes.lanes < item.count; i += 4 * lanes.lanes) {
            float four[4];
#pragma unroll
            for (uint32_t k = 0; k < 4; ++k) four[k] = scores[i + k * lanes.lanes] - shift;
            moments = Moments().add(moments, four);
        }
#pragma unroll 1
        for (; i < item.count; i += lanes.lanes) moments = Moments().add(moments, scores[i] - shift);
        moments = lanes.reduce(Moments(), moments);
        if (!is_first) return;
        const uint64_t of_row = group.records + (item.first_row + lanes.row) * static_cast<uint64_t>(group.tiles());
        device::store128(params.records + of_row + item.first / LinearGroup::tile,
                         uint4{__float_as_uint(shift), __float_as_uint(moments.mean), __float_as_uint(moments.deviations), 0});
    }
};
