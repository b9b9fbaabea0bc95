// y = W x for a few tokens: a matrix read once, at the speed of the memory.
//
// Eight rows of the matrix are a group, and 256 bytes of each of them a unit, which one warp takes at a time. A block
// has neighbouring groups; its units are dealt out evenly to its warps, in order, and a row's partial sums are added in
// the order of its units, so results do not depend on timing. A warp's weights come to shared memory by asynchronous
// copies, some units ahead, the first ones while other multiprocessors still run the previous kernel.
//
// The arithmetic is the tensor cores': 16 rows of activations by 8 rows of weights. A token takes two of the 16, one for
// the upper part of its activations and one for the lower, so that products are nearly as exact as in float32: of plain
// weights two numbers of the weights' own type, of quantized ones two bytes of a whole number, 2 ** -16 of the largest
// activation among 256.
//
// What quantized weights cost is not the products but the scales: each lane would scale numbers of eight tokens, of which
// one or two exist. So for few tokens the rows of the product are a token's slots: four neighbouring stretches of columns,
// whose sums need a scale each (its block's). A slot's sum and the order of all sums are the same either way.
#pragma once
#include "common.cuh"

// d += a * b of the tensor cores.
template <class T>
__device__ void multiply_add(float (&d)[4], const uint4& a, u32 b0, u32 b1);
template <>
__device__ inline void multiply_add<Half>(float (&d)[4], const uint4& a, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
template <>
__device__ inline void multiply_add<Brain>(float (&d)[4], const uint4& a, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
__device__ inline void multiply_add(int (&d)[4], const uint4& a, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Where the 16 bytes `chunk` of row `row` of a unit lie: so that a warp's reads meet no bank twice.
template <class S, bool few>
__device__ int place(int row, int chunk) {
    int turned;
    if constexpr (few)  // a lane reads 16 bytes of its slot, and slots are as many chunks apart as they have
        turned = S::chunks == 1 ? chunk ^ (row & 1) << 2 : S::chunks == 2 ? chunk ^ row & 1 : chunk ^ chunk >> 3 & 1 ^ (row & 1) << 1;
    else
        turned = S::bits == 16 ? chunk ^ (row & 1) << 2 : S::bits == 8 ? chunk ^ (row & 3) << 1 : chunk ^ row & 7;
    return row * S::unit_bytes + turned * 16;
}

// 16 bytes of shared memory for a lane that `takes` them; another lane keeps what it has.
__device__ inline void load_if(bool takes, uint4& to, u32 from) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];}"
                 : "+r"(to.x), "+r"(to.y), "+r"(to.z), "+r"(to.w)
                 : "r"(from), "r"((u32)takes));
}

// Eight activations as the tensor cores take them: 16 bytes times x_bytes / 2.
template <class T>
__device__ void store_plain(u8* to, const float (&v)[8], float up) {
    u32 pairs[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float one = up * v[2 * i], other = up * v[2 * i + 1];
        const u16 one_bits = T::to(one), other_bits = T::to(other);
        pairs[2 * i] = one_bits | (u32)other_bits << 16;
        pairs[2 * i + 1] = T::to(one - T::from(one_bits)) | (u32)T::to(other - T::from(other_bits)) << 16;
    }
    ((uint4*)to)[0] = *(uint4*)pairs, ((uint4*)to)[1] = *(uint4*)(pairs + 4);
}
// Whole numbers of 16 bits, as 256 * upper + lower; returns their sum. Four-bit weights lie even ones first.
template <int bits>
__device__ int store_whole(u8* to, const float (&v)[8], float up) {
    u32 words[4] = {};
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int x = __float2int_rn(v[i] * up), lower = (int)(signed char)(x & 255), upper = x - lower >> 8;
        const int word = bits == 4 ? 2 * (i % 2) : i / 4 * 2, byte = bits == 4 ? i / 2 : i % 4;
        words[word] |= (u32)(upper & 255) << 8 * byte, words[word + 1] |= (u32)(lower & 255) << 8 * byte;
        sum += x;
    }
    *(uint4*)to = *(uint4*)words;
    return sum;
}

// few: of quantized weights, for at most kFew tokens.
template <class S, class T, bool few>
__device__ void linear(const LinearArguments& a) {
    constexpr int bits = S::bits, kThreads = 32 * kWarps;
    extern __shared__ __align__(128) u8 shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, quarter = lane % 4;

    // This block's groups. Of two matrices a group has half of its rows from each. What comes before the first fetch, and
    // after the last product, each of the warps pays for: divisions are the host's.
    const int rows_each = 1 << a.rows_log2, spans = a.spans, padded = spans * kSpan, parts = a.parts;
    const int first_group = blockIdx.x * a.groups_each + min((int)blockIdx.x, a.groups_over);
    const int groups = a.groups_each + ((int)blockIdx.x < a.groups_over ? 1 : 0), units = groups * parts;
    const int begin = units * warp / kWarps, end = units * (warp + 1) / kWarps;

    u8* const ring = shared + keep(warp * S::ring_bytes);
    u8* const xs = shared + kWarps * S::ring_bytes;
    float* const squares = (float*)(xs + a.tokens * token_bytes(S::x_bytes, padded));  // [tokens, spans]
    float* const downs = squares + a.tokens * spans;                                   // [tokens, spans]: of the scales
    int* const sums = (int*)(downs + a.tokens * spans);                                // [tokens, slots' columns]: of activations
    float* const factors = (float*)sums + (S::zeros ? a.tokens * (padded / S::slot) : 0);  // [tokens]: of the norm
    float* const partial = factors + a.tokens;                                         // [groups, warps of a group, tokens, 8]

    // Fetching runs ahead of the arithmetic, with a place of its own. A lane copies some 16 bytes, and of what lies
    // beside the weights a word or two; every pointer goes on by as much from unit to unit, and jumps to the next group.
    constexpr int kChunks = S::unit_bytes / 16, kCopies = kGroup * kChunks / 32;
    constexpr int kRounds = S::quantized ? (kGroup * S::scale_words + 31) / 32 : 0;
    const int blocks = S::quantized ? (a.columns + S::block - 1) / (S::block ? S::block : 1) : 0, zero_bytes = (blocks * bits + 7) / 8;
    const int begin_group = quotient(begin, a.by_parts);
    int part = begin - begin_group * parts, left = end - begin, fetch_part = part, fetch_at = 0;
    const int chunk = lane % kChunks, begin_row = (first_group + begin_group) * rows_each;
    // Row r of the first unit's group: data[1], scales[1] and zeros[1] are those of rows 4 to 7.
    auto row_begin = [&](int r, int bytes) { return (i64)(begin_row + r % 4) * bytes; };
    const u8 *from[kCopies], *scale_from[kRounds + 1], *scale_end[kRounds + 1], *zero_from = nullptr, *zero_end = nullptr;
    // Where a row's scales, and a unit's, are whole eights of bytes, one copy a lane brings them.
    const bool wide = S::wide && blocks % 4 == 0;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
        const int r = lane / kChunks + i * (32 / kChunks);
        from[i] = a.data[r / 4] + row_begin(r, a.row_bytes) + part * S::unit_bytes + chunk * 16;
    }
    const int piece = 4 * (lane % S::pieces), piece_row = lane / S::pieces;  // blocks of a unit
    if constexpr (S::quantized) {
        if (wide) {
            scale_from[0] = (const u8*)(a.scales[piece_row / 4 % 2] + piece) + row_begin(piece_row, 2 * blocks);
        } else {
#pragma unroll
            for (int i = 0; i < kRounds; ++i) {
                const int w = lane + 32 * i, r = w / S::scale_words;
                scale_from[i] = (const u8*)a.scales[r / 4 % 2] + row_begin(r, 2 * blocks) + 4 * (w % S::scale_words);
                scale_end[i] = r < kGroup ? (const u8*)a.scales[a.matrices == 2 ? r / 4 : 0] + (i64)a.rows * 2 * blocks : nullptr;
            }
        }
        if constexpr (S::zeros) {
            const int r = lane / S::zero_words;
            zero_from = a.zeros[r / 4 % 2] + row_begin(r, zero_bytes) + 4 * (lane % S::zero_words);
            zero_end = r < kGroup ? a.zeros[a.matrices == 2 ? r / 4 : 0] + (i64)a.rows * zero_bytes : nullptr;
        }
    }
    const int weights_to = keep(place<S, few>(lane / kChunks, chunk)), chunk_at = keep(chunk * 16);
    const int scale_to = keep(S::weight_bytes + piece_row * (4 * S::scale_words) + piece * 2);
    auto fetch = [&] {
        if (left > 0) {
            u8* to = ring + fetch_at;
            const int there = fetch_part * S::unit_bytes + chunk_at < a.row_bytes ? 16 : 0;  // else zeros
#pragma unroll
            for (int i = 0; i < kCopies; ++i) {
                // A lane's rows are turned alike, but not where many tokens meet quantized weights.
                const int at = S::quantized && !few ? place<S, few>(lane / kChunks + i * (32 / kChunks), chunk) : weights_to + i * (32 / kChunks) * S::unit_bytes;
                copy_async_16(to + at, from[i], there);
                from[i] += S::unit_bytes;
            }
            if constexpr (S::quantized) {
                const int block = fetch_part * S::blocks;
                if (wide) {
                    if (piece_row < kGroup) copy_async_8(to + scale_to, scale_from[0] + 2 * block, block + piece < blocks ? 8 : 0);
                } else {
#pragma unroll
                    for (int i = 0; i < kRounds; ++i) {
                        const u8* word = (const u8*)((u64)(scale_from[i] + 2 * block) & ~3ull);
                        if (word < scale_end[i]) copy_async_4(to + S::weight_bytes + 4 * (lane + 32 * i), word);
                    }
                }
                if constexpr (S::zeros) {
                    const u8* word = (const u8*)((u64)(zero_from + block * bits / 8) & ~3ull);
                    if (word < zero_end) copy_async_4(to + S::weight_bytes + 4 * (kGroup * S::scale_words + lane), word);
                }
            }
            fetch_at = fetch_at + S::stage_bytes == S::ring_bytes ? 0 : fetch_at + S::stage_bytes;
            if (++fetch_part == parts) {
                fetch_part = 0;
#pragma unroll
                for (int i = 0; i < kCopies; ++i) from[i] += (i64)rows_each * a.row_bytes - parts * S::unit_bytes;
#pragma unroll
                for (int i = 0; i < kRounds; ++i) scale_from[i] += rows_each * 2 * blocks;
                zero_from += rows_each * zero_bytes;
            }
        }
        --left;
        end_copies();
    };

    let_next_begin();
    if (S::quantized && !wide) {  // a scale that no copy reaches is multiplied by zero, and must be a number
        for (int i = lane; i < S::depth * (S::side_bytes / 4); i += 32)
            *(u32*)(ring + i / (S::side_bytes / 4) * S::stage_bytes + S::weight_bytes + i % (S::side_bytes / 4) * 4) = 0;
        __syncwarp();
    }
#pragma unroll 1
    for (int i = 0; i < S::depth - 1; ++i) fetch();
    for (int i = threadIdx.x; i < groups * a.slots * kGroup * a.tokens; i += kThreads) partial[i] = 0;  // not every warp has a part

    // What a warp stages of x is an item: 256 columns of a token, eight a lane, under one scale. Several are on their way
    // at once. The norm's weights do not depend on the previous kernel.
    constexpr int kTogether = few ? 2 : 4;
    const int items = a.tokens * spans;
    float x[kTogether][8];
    uint4 norm[kTogether];
    auto column = [&](int i) { return (i - quotient(i, a.by_spans) * spans) * kSpan + 8 * lane; };
    auto read_norm = [&](int first) {
#pragma unroll
        for (int j = 0; j < kTogether; ++j)
            if (const int i = first + j * kWarps, k = column(i); a.norm && i < items && k < a.columns) norm[j] = *(const uint4*)(a.norm + k);
    };
    read_norm(warp);
    // What a thread writes first: row `out` of this block's, of token m.
    const int per_token = groups << a.rows_log2, outputs = per_token * a.tokens;
    const float* const extra_from = (a.residual ? a.residual : a.gate) + first_group * rows_each;
    const bool has_extra = a.residual || a.gate;
    int m = 0, out = threadIdx.x;
    auto within = [&] {
        for (; out >= per_token; out -= per_token) ++m;
    };
    if ((int)threadIdx.x < outputs) within();
    wait_for_previous();
    float extra = 0;
    if (has_extra && (int)threadIdx.x < outputs) extra = extra_from[(i64)m * a.rows + out];

    auto stage_x = [&](int i, float (&v)[8], const uint4& norm_weights) {
        const int token = quotient(i, a.by_spans), k = column(i);
        if (a.norm) {
            const u32 pairs[4] = {norm_weights.x, norm_weights.y, norm_weights.z, norm_weights.w};
            float square = 0;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                square = fmaf(v[j], v[j], square);
                if (k < a.columns) v[j] *= j % 2 ? high<T>(pairs[j / 2]) : low<T>(pairs[j / 2]);
            }
            square = warp_sum(square);
            if (lane == 0) squares[i] = square;
        }
        u8* to = xs + token * token_bytes(S::x_bytes, padded) + S::x_bytes * k;
        if constexpr (!S::quantized && !is_half<T>()) {
            store_plain<T>(to, v, 1.0f);  // of float32's range
        } else {
            float top = 0;
#pragma unroll
            for (int j = 0; j < 8; ++j) top = fmaxf(top, fabsf(v[j]));
            top = warp_top(top);
            if constexpr (S::quantized) {
                const bool usable = top > 1e-30f && top < 1e30f;
                const float up = usable ? 32512.0f / top : 0.0f;
                int sum = store_whole<bits>(to, v, up);
                if (lane == 0) downs[i] = usable ? top / (32512.0f * (bits == 4 ? 16 : 1)) : top == 0 || top <= 1e-30f ? 0.0f : __uint_as_float(0x7fffffffu);
                if constexpr (S::zeros) {
                    constexpr int lanes = S::slot / 8;
#pragma unroll
                    for (int step = 1; step < lanes; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
                    if (lane % lanes == 0) sums[(u32)(token * padded + k) / S::slot] = sum;
                }
            } else {
                const float up = power_below(16384.0f, top);
                store_plain<T>(to, v, up);
                if (lane == 0) downs[i] = 1 / up;
            }
        }
    };
    for (int first = warp; first < items; first += kTogether * kWarps) {
        if (first != warp) read_norm(first);
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
            const int i = first + j * kWarps, k = column(i);
            const bool there = i < items && k < a.columns;
            const float* from = a.x + (i64)quotient(i, a.by_spans) * a.columns + k;
            *(float4*)x[j] = there ? *(const float4*)from : float4{0, 0, 0, 0};
            *(float4*)(x[j] + 4) = there ? *(const float4*)(from + 4) : float4{0, 0, 0, 0};
        }
#pragma unroll
        for (int j = 0; j < kTogether; ++j)
            if (const int i = first + j * kWarps; i < items) stage_x(i, x[j], norm[j]);
    }
    __syncthreads();
    if (a.norm)
        for (int i = warp; i < a.tokens; i += kWarps) {
            float square = 0;
            for (int span = lane; span < spans; span += 32) square += squares[i * spans + span];
            square = warp_sum(square);
            if (lane == 0) factors[i] = rsqrtf(square / a.columns + a.epsilon);
        }

    // Where a lane's results belong: its row of the products is a token, or (few) a token's slot.
    const int row_token = few ? row / kSlots : row, token = row_token < a.tokens ? row_token : 0, own = few ? row % kSlots : 0;
    const u8* const my_x = xs + token * token_bytes(S::x_bytes, padded);
    const float* const my_downs = downs + token * spans;
    const int* const my_sums = sums + (S::zeros ? token * (padded / S::slot) : 0);
    float sum[S::quantized && !few ? kSlots : 1][2] = {};  // of two rows of the group; of each slot
    // The warps that have a part of a group are its first one, where the group's first unit is, and those behind it.
    const u32 before = __ballot_sync(0xffffffffu, lane < kWarps && units * lane / kWarps <= begin_group * parts);
    int group = begin_group, slot = part ? warp + 1 - __popc(before) : 0, stage_at = 0;
    // Where the scales of those rows lie beside a unit, and by how many bytes their zero points are off a word: the
    // same in each group, which has a multiple of four rows of a matrix.
    int scale_at[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) scale_at[i] = keep(S::weight_bytes + (2 * quarter + i) * S::scale_words * 4 + (i & blocks & 1) * 2);
    // few: a lane's weights are those of the slot `quarter`; the lane that has activations of the same slot as a row of its
    // own holds them, and all others hold zeros, so that each slot becomes a row of the products.
    const bool holds = few && own == quarter && row_token < a.tokens;
    const u32 x_from = keep(shared_address(my_x + S::x_bytes * S::slot * quarter));
    const int own_block = keep(own * S::slot / (S::block ? S::block : 1));
    uint4 held[4] = {};
    int weights_at[4];
    if constexpr (few) {
#pragma unroll
        for (int i = 0; i < 4; ++i) weights_at[i] = keep(place<S, few>(row, S::chunks == 1 ? quarter + 4 * (i % 2) : quarter * S::chunks + i % S::chunks));
    }
    const u32 upper_half = keep(0xf0f0f0f0u), first_bit = keep(0x80808080u);

    // A slot's product as a number: of row i of the two, `block` of the unit, `at` among the slots of all columns.
    auto scaled_by = [&](const u8* stage, int i, int block, int at, int upper, int lower, float before) {
        int whole = 256 * upper + lower;
        if constexpr (S::zeros) {
            const u8* zeros = stage + S::weight_bytes + (kGroup * S::scale_words + (2 * quarter + i) * S::zero_words) * 4 + ((2 * quarter + i) * zero_bytes + part * (S::blocks * bits / 8) & 3);
            const int zero = (zeros[block * bits / 8] >> (bits == 4 ? block % 2 * 4 : 0) & (1 << bits) - 1) - (1 << bits - 1);
            whole -= (bits == 4 ? 16 * zero : zero) * my_sums[at];
        }
        // A unit of one block may begin in the middle of the word that was copied.
        const int scale = S::blocks == 1 ? scale_at[i] ^ part % 2 * 2 : scale_at[i] + 2 * block;
        return fmaf(T::from(*(const u16*)(stage + scale)), (float)whole, before);
    };
    for (int count = end - begin; count > 0; --count) {
        fetch();
        wait_copies<S::depth - 1>();
        __syncwarp();
        const u8* const stage = ring + stage_at;
        if constexpr (!S::quantized) {
            const u8* const x_at = my_x + quarter * 32 + part * (S::unit * 4);
            float products[2][4] = {};
#pragma unroll
            for (int step = 0; step < S::unit / 32; ++step) {
                const uint4 w = *(const uint4*)(stage + place<S, few>(row, 4 * step + quarter));
                multiply_add<T>(products[0], *(const uint4*)(x_at + step * 128), w.x, w.y);
                multiply_add<T>(products[1], *(const uint4*)(x_at + step * 128 + 16), w.z, w.w);
            }
            const float down = is_half<T>() ? my_downs[(u32)(part * S::unit) / kSpan] : 1.0f;
#pragma unroll
            for (int i = 0; i < 2; ++i) sum[0][i] = fmaf(down, (products[0][i] + products[0][i + 2]) + (products[1][i] + products[1][i + 2]), sum[0][i]);
        } else if constexpr (few) {
            float scaled[2] = {};
#pragma unroll
            for (int round = 0; round < S::rounds; ++round) {
                int products[4] = {};
#pragma unroll
                for (int i = 0; i < S::chunks; ++i) {
                    const int base = S::chunks == 1 ? round % 2 : i, ahead = S::chunks == 1 ? round / 2 * 128 : round * (64 * S::chunks);
                    const uint4 w = *(const uint4*)(stage + weights_at[base] + ahead);
                    const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
                    for (int j = 0; j < 16 / bits; ++j) {
                        uint4& x = held[(round * S::chunks + i) * (16 / bits) % 4 + j];
                        load_if(holds, x, x_from + part * (2 * S::unit) + 2 * (round * (kSlots * S::slot) + (i * (16 / bits) + j) * 8));
                        if constexpr (bits == 4)  // a nibble n in the upper half of a byte, its first bit turned: 16 * (n - 8)
                            multiply_add(products, x, words[j] << 4 & upper_half ^ first_bit, words[j] & upper_half ^ first_bit);
                        else
                            multiply_add(products, x, words[2 * j] ^ first_bit, words[2 * j + 1] ^ first_bit);
                    }
                }
                const int block = round * kSlots * S::slot / S::block + own_block, at = part * (S::unit / S::slot) + round * kSlots + own;
#pragma unroll
                for (int i = 0; i < 2; ++i) scaled[i] = scaled_by(stage, i, block, at, products[i], products[i + 2], scaled[i]);
                if ((round + 1) * (kSlots * S::slot) % kSpan == 0) {
                    const float down = my_downs[part * (S::unit / kSpan) + round * kSlots * S::slot / kSpan + own * S::slot / kSpan];
                    sum[0][0] = fmaf(down, scaled[0], sum[0][0]), sum[0][1] = fmaf(down, scaled[1], sum[0][1]);
                    scaled[0] = scaled[1] = 0;
                }
            }
        } else {
            const u8* const x_at = my_x + quarter * 16 + part * (S::unit * 2);
#pragma unroll
            for (int span = 0; span < S::unit / kSpan; ++span) {
                constexpr int span_slots = kSpan / S::slot, slot_steps = S::slot / 32;
                const float down = my_downs[part * (S::unit / kSpan) + span];
                float scaled[kSlots][2] = {};
#pragma unroll
                for (int b = 0; b < span_slots; ++b) {
                    const int at = span * span_slots + b;
                    int products[4] = {};
#pragma unroll
                    for (int i = 0; i < slot_steps; ++i) {
                        const int step = at * slot_steps + i;
                        const uint4 x = *(const uint4*)(x_at + step * 64);
                        if constexpr (bits == 4) {
                            const u32 w = *(const u32*)(stage + place<S, few>(row, step) + quarter * 4);
                            multiply_add(products, x, w << 4 & upper_half ^ first_bit, w & upper_half ^ first_bit);
                        } else {
                            const uint2 w = *(const uint2*)(stage + place<S, few>(row, 2 * step + quarter / 2) + quarter % 2 * 8);
                            multiply_add(products, x, w.x ^ first_bit, w.y ^ first_bit);
                        }
                    }
#pragma unroll
                    for (int i = 0; i < 2; ++i)
                        scaled[at % kSlots][i] = scaled_by(stage, i, at * S::slot / S::block, part * (S::unit / S::slot) + at, products[i], products[i + 2], scaled[at % kSlots][i]);
                }
#pragma unroll
                for (int b = 0; b < (span_slots < kSlots ? span_slots : kSlots); ++b) {
                    const int s = (span * span_slots + b) % kSlots;
                    sum[s][0] = fmaf(down, scaled[s][0], sum[s][0]), sum[s][1] = fmaf(down, scaled[s][1], sum[s][1]);
                }
            }
        }
        if (++part == parts || count == 1) {
            float totals[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {  // slots are added in one order, however they lie
                if constexpr (few) {
                    totals[i] = sum[0][i] + __shfl_xor_sync(0xffffffffu, sum[0][i], 4);
                    totals[i] += __shfl_xor_sync(0xffffffffu, totals[i], 8);
                } else if constexpr (S::quantized) {
                    totals[i] = (sum[0][i] + sum[1][i]) + (sum[2][i] + sum[3][i]);
                } else {
                    totals[i] = sum[0][i];
                }
            }
            if (row_token < a.tokens && own == 0) {
                float* to = partial + ((group * a.slots + slot) * a.tokens + token) * kGroup + 2 * quarter;
                to[0] = totals[0], to[1] = totals[1];
            }
#pragma unroll
            for (auto& each : sum) each[0] = each[1] = 0;
            if (part == parts) part = 0, slot = 0, ++group;
        }
        stage_at = stage_at + S::stage_bytes == S::ring_bytes ? 0 : stage_at + S::stage_bytes;
        __syncwarp();  // all have read the stage that is fetched into next
    }
    wait_copies<0>();
    __syncthreads();

    for (int i = threadIdx.x; i < outputs; i += kThreads) {
        if (i >= kThreads) {
            out += kThreads, within();
            if (has_extra) extra = extra_from[(i64)m * a.rows + out];
        }
        const float* at = partial + ((out >> a.rows_log2) * a.slots * a.tokens + m) * kGroup + out % rows_each;
        float total[2] = {};
#pragma unroll 4
        for (int w = 0; w < a.slots; ++w, at += a.tokens * kGroup) {  // those that no warp has written are zero
            total[0] += at[0];
            if (a.matrices == 2) total[1] += at[4];
        }
        const float factor = a.norm ? factors[m] : 1;
        float y = total[0] * factor;
        if (a.matrices == 2) y = y / (1 + expf(-y)) * (total[1] * factor);
        if (a.gate) y *= extra / (1 + expf(-extra));
        if (a.residual) y += extra;
        a.y[(i64)m * a.stride + a.offset + first_group * rows_each + out] = y;
    }
}
