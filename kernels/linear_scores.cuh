// The first phase of linear_forward.cu: the scores of rows × tokens, z = h·W_v + b_v, and what is known of them before τ is.
#pragma once

#include "linear_pass.cuh"

template <class T>
class LinearScores : LinearPass<T> {
public:
    using LinearPass<T>::LinearPass;

    // Takes an item: tokens are the rows of a product and rows its columns, summed over a slice of the width.
    __device__ __forceinline__ void take(const LinearItem* address) const {
        this->keep(address);
        const LinearItem& item = shared.item;
        keep_indices();
        const Lines lines(item, params.stage_bytes);
        clear_padding(lines);
        BlockProduct<T> product(item.count, item.rows);
        const auto length = [&](uint32_t s) { return smaller(item.inner_count - s * lines.depth, lines.depth); };
        this->pipeline(
            (item.inner_count + lines.depth - 1) / lines.depth,
            [&](uint32_t s) { load(lines, this->stage(s), item.inner_first + s * lines.depth, round_up(length(s), step)); },
            [&](uint32_t s) {
                const T* head = this->stage(s);
                product.template add<false>(head, lines.pitch, head + lines.tokens * lines.pitch, lines.pitch,
                                            round_up(length(s), Fragments<T>::depth));
            });
        product.store(this->tile());
        const PartialSums sums = this->sums(product, false);
        if (sums.parts == 0) return;
#pragma unroll 1
        for (uint32_t r = threadIdx.x / reduce::warp_size; r < item.rows; r += warps) finish(sums, r);
    }

private:
    using LinearPass<T>::params;
    using LinearPass<T>::batch;
    using LinearPass<T>::shared;
    using LinearPass<T>::packet;
    using LinearPass<T>::warps;
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
            const uint32_t room = (stage_bytes / count - sizeof(Packet<T>)) / (step * sizeof(T)) * step;
            depth = smaller(room, round_up(item.inner_count, step));
            pitch = depth + packet;
        }
    };

    __device__ __forceinline__ void keep_indices() const {
        const LinearItem& item = shared.item;
        for (uint32_t i = threadIdx.x; i < item.count; i += blockDim.x) {
            shared.tokens[i] = batch.token(shared.group, item.first + i);
        }
        for (uint32_t i = threadIdx.x; i < item.rows; i += blockDim.x) {
            shared.positions[i] = batch.rows[this->row_index(i)].position;
        }
        // Every thread copies lines of any index.
        __syncthreads();
    }

    // Lines of no token and of no row hold zeros throughout.
    __device__ __forceinline__ void clear_padding(const Lines& lines) const {
        const LinearItem& item = shared.item;
        const uint32_t packets = lines.pitch / packet;
        for (uint32_t i = threadIdx.x; i < lines.count * packets; i += blockDim.x) {
            const uint32_t line = i / packets;
            if (line < item.count || (line >= lines.tokens && line < lines.tokens + item.rows)) continue;
#pragma unroll
            for (uint32_t s = 0; s < LinearShared::stages; ++s) {
                device::store128(this->stage(s) + i * packet, uint4{0, 0, 0, 0});
            }
        }
    }

    // Columns [begin, begin + columns) of the lines of tokens and rows, zeros behind the width.
    __device__ __forceinline__ void load(const Lines& lines, T* stage, uint32_t begin, uint32_t columns) const {
        const LinearItem& item = shared.item;
        const uint32_t packets = columns / packet, count = (item.count + item.rows) * packets;
#pragma unroll 2
        for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
            const uint32_t line = i / packets, p = i % packets, r = line - item.count;
            const bool of_head = line < item.count;
            const Vector<T> row = of_head ? batch.template head_row<T>(shared.tokens[line])
                                          : batch.template hidden_row<T>(shared.positions[r]);
            copy_packet(stage + (of_head ? line : lines.tokens + r) * lines.pitch + p * packet, row, begin / packet + p);
        }
    }

    // Leaves the scores of a row and a record of them. By a warp.
    __device__ __forceinline__ void finish(const PartialSums& sums, uint32_t r) const {
        constexpr uint32_t each = LinearGroup::tile / reduce::warp_size;
        const LinearItem& item = shared.item;
        const LinearGroup& group = shared.group;
        const uint32_t lane = threadIdx.x % reduce::warp_size, index = this->row_index(r);
        const LinearRow row = LinearRow::load(batch.rows + index);
        const uint32_t rank = row.rank - group.first_rank - item.first;
        float* scores = params.scores + group.scores + (item.first_row + r) * static_cast<uint64_t>(group.stride()) + item.first;
        float z[each];
        float maximum = -INFINITY;
#pragma unroll
        for (uint32_t k = 0; k < each; ++k) {
            const uint32_t i = lane + k * reduce::warp_size;
            z[k] = -INFINITY;
            if (i >= item.count) continue;
            z[k] = sums(r, i) + batch.template bias_of<T>(shared.tokens[i]);
            scores[i] = z[k];
            maximum = fmaxf(maximum, z[k]);
            if (i == rank) params.targets[index] = z[k];
        }
        // What pads a row of scores is copied along with them.
        if (item.first + item.count == group.tokens && item.count + lane < group.stride() - item.first) {
            scores[item.count + lane] = 0.0f;
        }
        ScoreRecord record = {reduce::warp(reduce::Maximum(), maximum), 0.0f, 0.0f, 0.0f};
        if (row.in_statistics) {
            record.shift = __shfl_sync(reduce::whole_warp, z[0], 0);
            Moments::Value moments = Moments().identity();
#pragma unroll
            for (uint32_t k = 0; k < each; ++k) {
                if (lane + k * reduce::warp_size < item.count) moments = Moments().add(moments, z[k] - record.shift);
            }
            moments = reduce::warp(Moments(), moments);
            record.mean = moments.mean;
            record.deviations = moments.deviations;
        }
        if (lane != 0) return;
        const uint64_t of_row = group.records + (item.first_row + r) * static_cast<uint64_t>(group.tiles());
        device::store128(params.records + of_row + item.first / LinearGroup::tile,
                         uint4{__float_as_uint(record.maximum), __float_as_uint(record.shift), __float_as_uint(record.mean),
                               __float_as_uint(record.deviations)});
    }
};
