// The first phase of linear_forward.cu: the scores z = h·W_v + b_v of rows × tokens, and of each row the maximum and
// the moments that τ is computed from.
#pragma once

#include "linear_phase.cuh"

template <class T>
class LinearScores : LinearPhase<T> {
public:
    using LinearPhase<T>::LinearPhase;

    // Processes a score item, with all threads of the block. It is a GEMM whose m is the tokens and whose n is the
    // rows, summed over a slice of the width:
    //
    //     1. Set up the addresses of the operand rows: gathered head rows of the tokens, and hidden states of the rows.
    //     2. Pipeline the slice through shared memory, some columns of all operand rows in each stage, and accumulate.
    //     3. Reduce the split-K slices over warps and blocks. Only the block that has the sums goes on.
    //     4. Add the bias, and write the scores and the record of each row.
    __device__ __forceinline__ void process(const LinearItem* address) const {
        this->load_item(address);
        const LinearItem& item = shared.item;
        const StageLayout layout(item, params.stage_bytes);
        set_up_rows(layout);
        BlockGemm<T> gemm(item.count, item.rows);
        const auto length = [&](uint32_t s) { return smaller(item.inner_count - s * layout.depth, layout.depth); };
        this->pipeline(
            (item.inner_count + layout.depth - 1) / layout.depth,
            [&](uint32_t s) { load(layout, this->stage(s), item.inner_first + s * layout.depth, round_up(length(s), step)); },
            [&](uint32_t s) {
                const T* head = this->stage(s);
                gemm.template add<false>(head, layout.pitch, head + layout.tokens * layout.pitch, layout.pitch,
                                            round_up(length(s), Fragments<T>::depth));
            });
        gemm.store(this->tile(), item.rows);
        if (!this->reduce_tile(gemm)) return;
        store_scores(gemm.pitch());
        // write_records reads scores that other threads have added the bias to.
        __syncthreads();
        write_records(gemm.pitch());
    }

private:
    using LinearPhase<T>::params;
    using LinearPhase<T>::batch;
    using LinearPhase<T>::shared;
    using LinearPhase<T>::packet;
    using LinearPhase<T>::warps;
    // The depth of a stage is a multiple of 32 bytes. With 16 bytes of padding the row pitch is an odd multiple of 16
    // bytes, as BlockGemm requires.
    static constexpr uint32_t step = 2 * packet;

    // The layout of a pipeline stage: `depth` columns of the head rows of the tokens (operand A), followed by the same
    // columns of the hidden states of the rows (operand B), both padded to full fragments.
    struct StageLayout {
        // The rows of A, and of A and B together.
        uint32_t tokens;
        uint32_t count;
        // The columns of a stage, and the row pitch, in elements.
        uint32_t depth;
        uint32_t pitch;

        __device__ __forceinline__ StageLayout(const LinearItem& item, uint32_t stage_bytes) {
            tokens = round_up(item.count, 16);
            count = tokens + round_up(item.rows, 8);
            const uint32_t fits = (stage_bytes / count - sizeof(Packet<T>)) / (step * sizeof(T)) * step;
            depth = smaller(fits, round_up(item.inner_count, step));
            pitch = depth + packet;
        }
    };

    // [StageLayout::count]: the address of each operand row in global memory; null for padding. They use the shared
    // memory of the exponentials, which only the second phase needs.
    __device__ __forceinline__ const T** row_addresses() const { return reinterpret_cast<const T**>(shared.exponentials); }

    // Writes the tokens and the addresses of the operand rows to shared memory, and zeros to the padding rows of all
    // stages, which no copy overwrites.
    __device__ __forceinline__ void set_up_rows(const StageLayout& layout) const {
        const LinearItem& item = shared.item;
        for (uint32_t row = threadIdx.x; row < layout.count; row += blockDim.x) {
            const uint32_t r = row - layout.tokens;
            const T* address = nullptr;
            if (row < item.count) {
                const uint32_t token = batch.token(shared.group, item.first + row);
                shared.tokens[row] = token;
                address = batch.template head_row<T>(token).values;
            } else if (row >= layout.tokens && r < item.rows) {
                address = batch.template hidden_row<T>(batch.rows[this->row_index(r)].position).values;
            }
            row_addresses()[row] = address;
        }
        // Every thread copies packets of any row.
        __syncthreads();
        const uint32_t padding = layout.tokens - item.count, packets = layout.pitch / packet;
        this->for_each_packet(padding + layout.count - layout.tokens - item.rows, packets, [&](uint32_t i, uint32_t p) {
            const uint32_t row = i < padding ? item.count + i : layout.tokens + item.rows + i - padding;
#pragma unroll
            for (uint32_t s = 0; s < LinearShared::stages; ++s) {
                device::store128(this->stage(s) + row * layout.pitch + p * packet, uint4{0, 0, 0, 0});
            }
        });
    }

    // Starts the copies of columns [begin, begin + columns) of all operand rows to a stage, with zeros past the
    // width.
    __device__ __forceinline__ void load(const StageLayout& layout, T* stage, uint32_t begin, uint32_t columns) const {
        this->for_each_packet(layout.count, columns / packet, [&](uint32_t row, uint32_t p) {
            const Vector<T> values(row_addresses()[row], batch.width);
            if (values.values) copy_packet(stage + row * layout.pitch + p * packet, values, begin / packet + p);
        });
    }

    // Adds the bias to the scores in `tile` and writes them to global memory, in full packets. The padding of a row is
    // set to 0, because the second phase copies it along with the scores.
    __device__ __forceinline__ void store_scores(uint32_t pitch) const {
        const LinearItem& item = shared.item;
        const uint64_t stride = shared.group.stride();
        float* scores = params.scores + shared.group.scores + item.first_row * stride + item.first;
        this->for_each_packet(item.rows, (item.count + 3) / 4, [&](uint32_t r, uint32_t p) {
            float* tile_scores = this->tile() + r * pitch + 4 * p;
            Packet<float> z = Packet<float>::load(tile_scores);
#pragma unroll
            for (uint32_t k = 0; k < 4; ++k) {
                const uint32_t i = 4 * p + k;
                z.values[k] = i < item.count ? z.values[k] + batch.template bias_of<T>(shared.tokens[i]) : 0.0f;
            }
            z.store(tile_scores);
            z.store(scores + r * stride + 4 * p);
        });
    }

    // Writes the moments of each row over this item's tokens and, if the target is one of them, its score. Raises the
    // row's maximum to that of the other tokens.
    __device__ __forceinline__ void write_records(uint32_t pitch) const {
        const LinearItem& item = shared.item;
        const LinearGroup& group = shared.group;
        const RowLanes lanes(item.rows, blockDim.x);
        const bool has_row = lanes.row < item.rows, is_first = has_row && lanes.lane == 0;
        const uint32_t index = this->row_index(has_row ? lanes.row : 0);
        const float* scores = this->tile() + (has_row ? lanes.row : 0) * pitch;
        // The index of the target among this item's tokens; at least item.count if it is not one of them.
        const uint32_t rank = batch.rows[index].rank - group.first_rank - item.first;
        if (is_first && rank < item.count) params.targets[index] = scores[rank];
        float maximum = -INFINITY;
#pragma unroll 4
        for (uint32_t i = lanes.lane; i < item.count; i += lanes.lanes) {
            maximum = i == rank ? maximum : fmaxf(maximum, scores[i]);
        }
        maximum = lanes.reduce(reduce::Maximum(), maximum);
        if (is_first) atomicMax(&batch.rows[index].maximum, ordered_bits(maximum));
        // Without statistics rows the records are never read.
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
        const uint64_t first_record = group.records + (item.first_row + lanes.row) * static_cast<uint64_t>(group.tiles());
        device::store128(params.records + first_record + item.first / LinearGroup::tile,
                         uint4{__float_as_uint(shift), __float_as_uint(moments.mean), __float_as_uint(moments.deviations), 0});
    }
};
