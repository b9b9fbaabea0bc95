// Attention of one new token of each row over its past: rotate, append to the past, attend.
//
// A key/value head's past is split over kSplits blocks. In a block, teams of lanes that hold a key together (8 numbers in
// each lane) take positions in turn, two at once. The block that comes last for its head puts the splits together, in
// their order. Keys and values come by asynchronous copies, the first ones while the previous kernel still runs.
//
// Of an int8 cache a number is code * scale, one scale a channel: keys' scales are part of the query, values' scales of
// the sums, so that codes alone are read and multiplied.
#pragma once
#include "common.cuh"

// Of eight neighbouring numbers, as a lane holds them, the one at `j`: of T, or a code.
template <class T>
__device__ float number(const u32 (&pairs)[4], int j) {
    return j % 2 ? high<T>(pairs[j / 2]) : low<T>(pairs[j / 2]);
}
template <class T>
__device__ float number(const u32 (&codes)[2], int j) {
    // code + 128 as the last byte of the float 2 ** 23: conversions are slower than two operations on words.
    return __uint_as_float(__byte_perm(codes[j / 4] ^ 0x80808080u, 0x4b000000u, 0x7440u + j % 4)) - 8388736.0f;
}
// The nearest of -128 ... 127, of two the even one; 0 for what is no number.
__device__ inline u32 code_of(float x) {
    int code;
    asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(code) : "f"(x));
    return (u32)code & 0xff;
}
__device__ inline void copy_async(uint4* to, const void* from) { copy_async_16(to, from); }
__device__ inline void copy_async(uint2* to, const void* from) { copy_async_8(to, from); }
__device__ inline void load_eight(const float* from, float (&x)[8]) {
    *(float4*)x = *(const float4*)from, *(float4*)(x + 4) = *(const float4*)(from + 4);
}

// T: of the tables, and of keys and values unless they are `coded`. size: of a head. group: query heads that share a
// key/value head, at most.
template <class T, bool coded, int size, int group>
__device__ void attention(const AttentionArguments& a) {
    typedef typename Choose<coded, u8, u16>::type Element;
    typedef typename Choose<coded, uint2, uint4>::type Eight;
    // depth: pairs of positions, of as many bytes in flight whatever their type.
    constexpr int lanes = size / 8, teams = kAttentionThreads / lanes, depth = coded ? 4 : 2;
    constexpr int words = sizeof(Eight) / 4, ring_bytes = depth * 4 * kAttentionThreads * sizeof(Eight), merged_bytes = teams * group * (size + 2) * 4;
    __shared__ __align__(16) u8 memory[ring_bytes > merged_bytes ? ring_bytes : merged_bytes];
    __shared__ bool is_last;
    Eight(*ring)[4][kAttentionThreads] = (Eight(*)[4][kAttentionThreads])memory;  // [depth][key, value, key, value][thread]
    const int split = blockIdx.x, kv_head = blockIdx.y, row = blockIdx.z;
    const int lane = threadIdx.x % lanes, team = threadIdx.x / lanes;
    const int shared_by = a.heads / a.kv_heads;
    const u32 together = (lanes == 32 ? 0xffffffffu : (1u << lanes % 32) - 1) << threadIdx.x % 32 / lanes * lanes;

    let_next_begin();
    const int position = a.last[row];
    const int piece = (position + kSplits * teams) / (kSplits * teams);  // positions of a team, the new one counted
    const int block_begin = split * piece * teams, block_end = block_begin + piece * teams;
    const int end = min(block_end, position);  // the new token is apart
    const i64 head_at = ((i64)row * a.kv_heads + kv_head) * a.capacity * size;
    const Element *keys = (const Element*)a.keys + head_at + 8 * lane, *values = (const Element*)a.values + head_at + 8 * lane;
    // A team's positions lie `teams` apart, so that a block reads on without gaps.
    int next = block_begin + team, next_stage = 0;
    auto fetch = [&] {
#pragma unroll
        for (int i = 0; i < 2; ++i, next += teams)
            if (next < end) {
                copy_async(&ring[next_stage][2 * i][threadIdx.x], keys + (i64)next * size);
                copy_async(&ring[next_stage][2 * i + 1][threadIdx.x], values + (i64)next * size);
            }
        next_stage = (next_stage + 1) % depth;
        end_copies();
    };
    for (int i = 0; i < depth; ++i) fetch();
    float cos[8], sin[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int d = 8 * lane + i, j = a.interleaved ? d / 2 : d % (size / 2);
        cos[i] = T::from(a.cos[(i64)position * (size / 2) + j]), sin[i] = T::from(a.sin[(i64)position * (size / 2) + j]);
    }
    // Of this lane's channels.
    float key_scales[8], value_scales[8];
    if constexpr (coded) {
        load_eight(a.key_scales + kv_head * size + 8 * lane, key_scales);
        load_eight(a.value_scales + kv_head * size + 8 * lane, value_scales);
    }
    wait_for_previous();

    // Eight neighbouring values of a head, rotated.
    auto rotated = [&](const float* from, float (&x)[8]) {
        float other[8];
        *(float4*)x = *(const float4*)(from + 8 * lane), *(float4*)(x + 4) = *(const float4*)(from + 8 * lane + 4);
        if (!a.interleaved) {
            const float* across = from + (8 * lane < size / 2 ? 8 * lane + size / 2 : 8 * lane - size / 2);
            *(float4*)other = *(const float4*)across, *(float4*)(other + 4) = *(const float4*)(across + 4);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (a.interleaved)
                other[i] = i % 2 ? x[i - 1] : -x[i + 1];
            else if (8 * lane < size / 2)
                other[i] = -other[i];
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = x[i] * cos[i] + other[i] * sin[i];
    };
    const float* qkv = a.qkv + (i64)row * (a.heads + 2 * a.kv_heads) * size;
    float q[group][8], sums[group][8] = {}, best[group], weight[group] = {};
    const float scale = rsqrtf((float)size) * 1.4426950408889634f;  // of powers of two
#pragma unroll
    for (int g = 0; g < group; ++g) {
        best[g] = -1e30f;
        rotated(qkv + (kv_head * shared_by + min(g, shared_by - 1)) * size, q[g]);
#pragma unroll
        for (int i = 0; i < 8; ++i) q[g][i] *= coded ? scale * key_scales[i] : scale;
    }
    // Two positions at once, of which the second may be none.
    auto attend = [&](const Eight (&kv)[4], bool two) {
#pragma unroll
        for (int g = 0; g < group; ++g) {
            float score[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                u32 k[words];
                *(Eight*)k = kv[2 * i];
                float even = 0, odd = 0;
#pragma unroll
                for (int j = 0; j < 8; j += 2) even = fmaf(q[g][j], number<T>(k, j), even), odd = fmaf(q[g][j + 1], number<T>(k, j + 1), odd);
                score[i] = even + odd;
            }
#pragma unroll
            for (int step = lanes / 2; step; step /= 2) {
                score[0] += __shfl_xor_sync(together, score[0], step);
                score[1] += __shfl_xor_sync(together, score[1], step);
            }
            if (!two) score[1] = -1e30f;
            const float top = fmaxf(best[g], fmaxf(score[0], score[1])), old = exp2f(best[g] - top);
            const float first = exp2f(score[0] - top), second = two ? exp2f(score[1] - top) : 0;
            best[g] = top, weight[g] = fmaf(weight[g], old, first + second);
            u32 v[2][words];
            *(Eight*)v[0] = kv[1], *(Eight*)v[1] = kv[3];
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float one = number<T>(v[0], j), other = number<T>(v[1], j);
                sums[g][j] = fmaf(sums[g][j], old, first * one);
                if (two) sums[g][j] = fmaf(second, other, sums[g][j]);
            }
        }
    };
    int stage = 0;
    for (int p = block_begin + team; p < end; p += 2 * teams) {
        wait_copies<depth - 1>();
        const Eight kv[4] = {ring[stage][0][threadIdx.x], ring[stage][1][threadIdx.x], ring[stage][2][threadIdx.x], ring[stage][3][threadIdx.x]};
        fetch();  // into the stage that was just read
        stage = (stage + 1) % depth;
        attend(kv, p + teams < end);
    }
    // The new token: in the block whose range it lies in, by the team whose turn it is.
    if (position >= block_begin && position < block_end && (position - block_begin) % teams == team) {
        float k[8];
        rotated(qkv + (a.heads + kv_head) * size, k);
        const float* v = qkv + (a.heads + a.kv_heads + kv_head) * size + 8 * lane;
        u32 key[words] = {}, value[words] = {};
        if constexpr (coded) {
            // A code cannot say that a number is none, or infinite: the head's output says it.
            float finite = 0;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                key[i / 4] |= code_of(k[i] / key_scales[i]) << 8 * (i % 4);
                value[i / 4] |= code_of(v[i] / value_scales[i]) << 8 * (i % 4);
                finite = fmaf(0.0f, k[i], fmaf(0.0f, v[i], finite));
            }
#pragma unroll
            for (int g = 0; g < group; ++g) q[g][0] += finite;  // 0, or NaN
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                key[i] = T::to(k[2 * i]) | (u32)T::to(k[2 * i + 1]) << 16;
                value[i] = T::to(v[2 * i]) | (u32)T::to(v[2 * i + 1]) << 16;
            }
        }
        *(Eight*)((Element*)a.keys + head_at + (i64)position * size + 8 * lane) = *(Eight*)key;
        *(Eight*)((Element*)a.values + head_at + (i64)position * size + 8 * lane) = *(Eight*)value;
        const Eight kv[4] = {*(Eight*)key, *(Eight*)value, {}, {}};
        attend(kv, false);
    }
    wait_copies<0>();
    __syncthreads();

    // The teams of the block, in their order.
    float(*merged)[group][size + 2] = (float(*)[group][size + 2])memory;
#pragma unroll
    for (int g = 0; g < group; ++g) {
#pragma unroll
        for (int i = 0; i < 8; ++i) merged[team][g][8 * lane + i] = coded ? sums[g][i] * value_scales[i] : sums[g][i];
        if (lane == 0) merged[team][g][size] = best[g], merged[team][g][size + 1] = weight[g];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < shared_by * size; i += kAttentionThreads) {
        const int g = i / size, d = i % size, head = kv_head * shared_by + g;
        float top = -1e30f, sum = 0, norm = 0;
#pragma unroll
        for (int t = 0; t < teams; ++t) top = fmaxf(top, merged[t][g][size]);
#pragma unroll
        for (int t = 0; t < teams; ++t) {
            const float factor = exp2f(merged[t][g][size] - top);
            sum = fmaf(factor, merged[t][g][d], sum), norm = fmaf(factor, merged[t][g][size + 1], norm);
        }
        float* to = a.parts + (((i64)row * a.heads + head) * kSplits + split) * (size + 2);
        to[d] = sum;
        if (d == 0) to[size] = top, to[size + 1] = norm;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(a.arrived + row * a.kv_heads + kv_head, 1) == kSplits - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    for (int i = threadIdx.x; i < shared_by * size; i += kAttentionThreads) {
        const int g = i / size, d = i % size, head = kv_head * shared_by + g;
        const float* from = a.parts + ((i64)row * a.heads + head) * kSplits * (size + 2);
        float tops[kSplits], norms[kSplits], values_of[kSplits], top = -1e30f, sum = 0, norm = 0;
#pragma unroll
        for (int s = 0; s < kSplits; ++s) {
            tops[s] = __ldcg(from + s * (size + 2) + size), norms[s] = __ldcg(from + s * (size + 2) + size + 1);
            values_of[s] = __ldcg(from + s * (size + 2) + d);
        }
#pragma unroll
        for (int s = 0; s < kSplits; ++s) top = fmaxf(top, tops[s]);
#pragma unroll
        for (int s = 0; s < kSplits; ++s) {
            const float factor = exp2f(tops[s] - top);
            sum = fmaf(factor, values_of[s], sum), norm = fmaf(factor, norms[s], norm);
        }
        a.output[((i64)row * a.heads + head) * size + d] = sum / norm;
    }
    if (threadIdx.x == 0) a.arrived[row * a.kv_heads + kv_head] = 0;
}
