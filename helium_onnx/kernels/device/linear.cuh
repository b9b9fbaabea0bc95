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
template <class S>
__device__ int place(int row, int chunk) {
    const int turned = S::bits == 16 ? chunk ^ (row & 1) << 2 : S::bits == 8 ? chunk ^ (row & 3) << 1 : chunk ^ row & 7;
    return row * S::unit_bytes + turned * 16;
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

template <class S, class T>
__device__ void linear(const LinearArguments& a) {
    constexpr int bits = S::bits, steps = S::unit / 32, kThreads = 32 * kWarps;
    extern __shared__ __align__(128) u8 shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, quarter = lane % 4;

    // This block's groups. Of two matrices a group has half of its rows from each.
    const int rows_each = kGroup / a.matrices;
    const int first_group = blockIdx.x * a.groups_each + min((int)blockIdx.x, a.groups_over);
    const int groups = a.groups_each + ((int)blockIdx.x < a.groups_over ? 1 : 0);
    const int parts = (a.columns + S::unit - 1) / S::unit, units = groups * parts;
    const int begin = units * warp / kWarps, end = units * (warp + 1) / kWarps;
    const int slots = kWarps / groups + 2;  // warps that a group may have
    const int padded = rounded_up(a.columns, S::unit > kSpan ? S::unit : kSpan);

    u8* const ring = shared + warp * S::ring_bytes;
    u8* const xs = shared + kWarps * S::ring_bytes;
    float* const squares = (float*)(xs + a.tokens * token_bytes(S::x_bytes, padded));  // [tokens, warps]
    float* const downs = squares + a.tokens * kWarps;                                  // [tokens, spans]: of the scales
    int* const sums = (int*)(downs + a.tokens * (padded / kSpan));                      // [tokens, blocks]: of activations
    float* const partial = (float*)sums + (S::zeros ? a.tokens * (padded / (S::block ? S::block : 1)) : 0);  // [groups, slots, tokens, 8]

    // Fetching runs ahead of the arithmetic, with a place of its own. A lane copies some 16 bytes, and of what lies
    // beside the weights a word or two; every pointer goes on by as much from unit to unit, and jumps to the next group.
    constexpr int kChunks = S::unit_bytes / 16, kCopies = kGroup * kChunks / 32;
    constexpr int kRounds = S::quantized ? (kGroup * S::scale_words + 31) / 32 : 0;
    const int blocks = S::quantized ? (a.columns + S::block - 1) / (S::block ? S::block : 1) : 0, zero_bytes = (blocks * bits + 7) / 8;
    const int begin_group = begin / parts;
    int part = begin - begin_group * parts, left = end - begin, fetch_part = part, fetch_at = 0;
    const int chunk = lane % kChunks;
    auto row_begin = [&](int r, int bytes) {  // of row r of the first unit's group, in its matrix
        return (i64)((first_group + begin_group) * rows_each + (r >= rows_each ? r - rows_each : r)) * bytes;
    };
    const u8 *from[kCopies], *scale_from[kRounds + 1], *scale_end[kRounds + 1], *zero_from = nullptr, *zero_end = nullptr;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
        const int r = lane / kChunks + i * (32 / kChunks);
        from[i] = a.data[r >= rows_each] + row_begin(r, a.row_bytes) + part * S::unit_bytes + chunk * 16;
    }
    if constexpr (S::quantized) {
#pragma unroll
        for (int i = 0; i < kRounds; ++i) {
            const int w = lane + 32 * i, r = w / S::scale_words;
            const u8* base = (const u8*)a.scales[r >= rows_each];
            scale_from[i] = base + row_begin(r, 2 * blocks) + 4 * (w % S::scale_words);
            scale_end[i] = r < kGroup ? base + (i64)a.rows * 2 * blocks : nullptr;
        }
        if constexpr (S::zeros) {
            const int r = lane / S::zero_words;
            const u8* base = a.zeros[r >= rows_each];
            zero_from = base + row_begin(r, zero_bytes) + 4 * (lane % S::zero_words);
            zero_end = r < kGroup ? base + (i64)a.rows * zero_bytes : nullptr;
        }
    }
    auto fetch = [&] {
        if (left > 0) {
            u8* to = ring + fetch_at;
            const int there = fetch_part * S::unit_bytes + chunk * 16 < a.row_bytes ? 16 : 0;  // else zeros
#pragma unroll
            for (int i = 0; i < kCopies; ++i) {
                copy_async_16(to + place<S>(lane / kChunks + i * (32 / kChunks), chunk), there ? from[i] : a.data[0], there);
                from[i] += S::unit_bytes;
            }
            if constexpr (S::quantized) {
                const int block = fetch_part * S::blocks;
#pragma unroll
                for (int i = 0; i < kRounds; ++i) {
                    const u8* word = (const u8*)((u64)(scale_from[i] + 2 * block) & ~3ull);
                    if (word < scale_end[i]) copy_async_4(to + S::weight_bytes + 4 * (lane + 32 * i), word);
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
    if constexpr (S::quantized) {  // a scale that no copy reaches is multiplied by zero, and must be a number
        for (int i = lane; i < S::depth * (S::side_bytes / 4); i += 32)
            *(u32*)(ring + i / (S::side_bytes / 4) * S::stage_bytes + S::weight_bytes + i % (S::side_bytes / 4) * 4) = 0;
        __syncwarp();
    }
    for (int i = 0; i < S::depth - 1; ++i) fetch();
    for (int i = threadIdx.x; i < groups * slots * kGroup * a.tokens; i += kThreads) partial[i] = 0;  // not every warp has a part

    // The norm's weights do not depend on the previous kernel.
    uint4 weights[2] = {};
    if (a.norm)
#pragma unroll
        for (int i = 0; i < 2; ++i)
            if (int k = 8 * (threadIdx.x + i * kThreads); k < a.columns) weights[i] = *(const uint4*)(a.norm + k);
    wait_for_previous();
    // What a thread writes first; later ones (of many rows) are read when they are due.
    const int per_token = groups * rows_each, first_out = first_group * rows_each;
    auto extra_at = [&](int i) { return (i64)(i / per_token) * a.rows + first_out + i % per_token; };
    float extra = 0;
    if (const float* p = a.residual ? a.residual : a.gate; p && (int)threadIdx.x < per_token * a.tokens) extra = p[extra_at(threadIdx.x)];

    // x: a warp has 256 columns at a time, eight a lane, under one scale.
    for (int m = 0; m < a.tokens; ++m) {
        float square = 0;
        const float* x = a.x + (i64)m * a.columns;
        for (int i = 0, k = 8 * threadIdx.x; k < padded; ++i, k += 8 * kThreads) {
            float v[8] = {};
            if (k < a.columns) *(float4*)v = *(const float4*)(x + k), *(float4*)(v + 4) = *(const float4*)(x + k + 4);
            if (a.norm && k < a.columns) {
                const uint4 w = i == 0 ? weights[0] : i == 1 ? weights[1] : *(const uint4*)(a.norm + k);
                const u32 pairs[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    square = fmaf(v[j], v[j], square);
                    v[j] *= j % 2 ? high<T>(pairs[j / 2]) : low<T>(pairs[j / 2]);
                }
            }
            u8* to = xs + m * token_bytes(S::x_bytes, padded) + S::x_bytes * k;
            if constexpr (!S::quantized && !is_half<T>()) {
                store_plain<T>(to, v, 1.0f);  // of float32's range
            } else {
                float top = 0;
#pragma unroll
                for (int j = 0; j < 8; ++j) top = fmaxf(top, fabsf(v[j]));
                top = warp_top(top);
                const int span = m * (padded / kSpan) + k / kSpan;
                if constexpr (S::quantized) {
                    const bool usable = top > 1e-30f && top < 1e30f;
                    const float up = usable ? 32512.0f / top : 0.0f;
                    int sum = store_whole<bits>(to, v, up);
                    if (lane == 0) downs[span] = usable ? top / (32512.0f * (bits == 4 ? 16 : 1)) : top == 0 || top <= 1e-30f ? 0.0f : __uint_as_float(0x7fffffffu);
                    if constexpr (S::zeros) {
                        constexpr int lanes = S::block / 8;
#pragma unroll
                        for (int step = 1; step < lanes; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
                        if (lane % lanes == 0) sums[m * (padded / S::block) + k / S::block] = sum;
                    }
                } else {
                    const float up = power_below(16384.0f, top);
                    store_plain<T>(to, v, up);
                    if (lane == 0) downs[span] = 1 / up;
                }
            }
        }
        if (a.norm) {
            square = warp_sum(square);
            if (lane == 0) squares[m * kWarps + warp] = square;
        }
    }
    __syncthreads();

    const int token = row < a.tokens ? row : a.tokens - 1;
    const u8* const my_x = xs + token * token_bytes(S::x_bytes, padded) + quarter * (8 * S::x_bytes);
    const float* const my_downs = downs + token * (padded / kSpan);
    const int* const my_sums = sums + (S::zeros ? token * (padded / (S::block ? S::block : 1)) : 0);
    float sum[2] = {};  // of the lane's token and two rows of the group
    int group = begin_group, slot = part ? warp - ((group * parts + 1) * kWarps - 1) / units : 0, stage_at = 0;
    // Where the scales of those rows lie beside a unit, and by how many bytes their zero points are off a word: the
    // same in each group, which has a multiple of four rows of a matrix.
    int scale_at[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) scale_at[i] = S::weight_bytes + (2 * quarter + i) * S::scale_words * 4 + (i & blocks & 1) * 2;
    for (int count = end - begin; count > 0; --count) {
        fetch();
        wait_copies<S::depth - 1>();
        __syncwarp();
        const u8* const stage = ring + stage_at;
        const u8* const x_at = my_x + part * (S::unit * S::x_bytes);
        const u8* zeros[2] = {};
        if constexpr (S::zeros) {  // the braces matter: without them NVCC 13 drops the loop that follows
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int r = 2 * quarter + i;
                zeros[i] = stage + S::weight_bytes + (kGroup * S::scale_words + r * S::zero_words) * 4 + (r * zero_bytes + part * (S::blocks * bits / 8) & 3);
            }
        }
#pragma unroll
        for (int span = 0; span < (S::unit + kSpan - 1) / kSpan; ++span) {
            constexpr int span_steps = (S::unit < kSpan ? S::unit : kSpan) / 32;
            const float down = !S::quantized && !is_half<T>() ? 1.0f : my_downs[(part * S::unit) / kSpan + span];
            if constexpr (!S::quantized) {
                float products[2][4] = {};
#pragma unroll
                for (int i = 0; i < span_steps; ++i) {
                    const int step = span * span_steps + i;
                    const uint4 w = *(const uint4*)(stage + place<S>(row, 4 * step + quarter));
                    multiply_add<T>(products[0], *(const uint4*)(x_at + step * 128), w.x, w.y);
                    multiply_add<T>(products[1], *(const uint4*)(x_at + step * 128 + 16), w.z, w.w);
                }
#pragma unroll
                for (int i = 0; i < 2; ++i) sum[i] = fmaf(down, (products[0][i] + products[0][i + 2]) + (products[1][i] + products[1][i + 2]), sum[i]);
            } else {
                constexpr int block_steps = S::block / 32, span_blocks = kSpan / S::block;
                float scaled[2] = {};
#pragma unroll
                for (int b = 0; b < span_blocks; ++b) {
                    const int block = span * span_blocks + b;
                    int products[4] = {};
#pragma unroll
                    for (int i = 0; i < block_steps; ++i) {
                        const int step = block * block_steps + i;
                        const uint4 x = *(const uint4*)(x_at + step * 64);
                        if constexpr (bits == 4) {
                            // A nibble n in the upper half of a byte, its first bit turned: 16 * (n - 8).
                            const u32 w = *(const u32*)(stage + place<S>(row, step) + quarter * 4);
                            multiply_add(products, x, w << 4 & 0xf0f0f0f0u ^ 0x80808080u, w & 0xf0f0f0f0u ^ 0x80808080u);
                        } else {
                            const uint2 w = *(const uint2*)(stage + place<S>(row, 2 * step + quarter / 2) + quarter % 2 * 8);
                            multiply_add(products, x, w.x ^ 0x80808080u, w.y ^ 0x80808080u);
                        }
                    }
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        int whole = 256 * products[i] + products[i + 2];
                        if constexpr (S::zeros) {
                            const int zero = (zeros[i][block * bits / 8] >> (bits == 4 ? block % 2 * 4 : 0) & (1 << bits) - 1) - (1 << bits - 1);
                            whole -= (bits == 4 ? 16 * zero : zero) * my_sums[part * S::blocks + block];
                        }
                        // A unit of one block may begin in the middle of the word that was copied.
                        const int at = S::blocks == 1 ? scale_at[i] ^ part % 2 * 2 : scale_at[i] + 2 * block;
                        scaled[i] = fmaf(T::from(*(const u16*)(stage + at)), (float)whole, scaled[i]);
                    }
                }
                sum[0] = fmaf(down, scaled[0], sum[0]), sum[1] = fmaf(down, scaled[1], sum[1]);
            }
        }
        if (++part == parts || count == 1) {
            if (row < a.tokens) {  // as a row of the product it is a token
                float* to = partial + ((group * slots + slot) * a.tokens + row) * kGroup + 2 * quarter;
                to[0] = sum[0], to[1] = sum[1];
            }
            sum[0] = sum[1] = 0;
            if (part == parts) part = 0, slot = 0, ++group;
        }
        stage_at = stage_at + S::stage_bytes == S::ring_bytes ? 0 : stage_at + S::stage_bytes;
        __syncwarp();  // all have read the stage that is fetched into next
    }
    wait_copies<0>();
    __syncthreads();

    for (int i = threadIdx.x; i < per_token * a.tokens; i += kThreads) {
        const int m = i / per_token, out = i % per_token, g = out / rows_each, r = out % rows_each;
        float total[2] = {};
        for (int w = 0; w < slots; ++w) {  // those that no warp has written are zero
            const float* at = partial + ((g * slots + w) * a.tokens + m) * kGroup + r;
            total[0] += at[0];
            if (a.matrices == 2) total[1] += at[rows_each];
        }
        float factor = 1;
        if (a.norm) {
            float square = 0;
#pragma unroll
            for (int w = 0; w < kWarps; w += 4) {
                const float4 v = *(const float4*)(squares + m * kWarps + w);
                square += (v.x + v.y) + (v.z + v.w);
            }
            factor = rsqrtf(square / a.columns + a.epsilon);
        }
        if (i >= kThreads && (a.residual || a.gate)) extra = (a.residual ? a.residual : a.gate)[extra_at(i)];
        float y = total[0] * factor;
        if (a.matrices == 2) y = y / (1 + expf(-y)) * (total[1] * factor);
        if (a.gate) y *= extra / (1 + expf(-extra));
        if (a.residual) y += extra;
        a.y[(i64)m * a.stride + a.offset + first_out + out] = y;
    }
}
