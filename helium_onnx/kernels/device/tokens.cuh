// From token ids to activations, and from logits to the next token's id.
#pragma once
#include "common.cuh"

template <int bits, class T>
__device__ void embedding(const EmbeddingArguments& a) {
    let_next_begin();
    wait_for_previous();
    i64 id = a.ids[blockIdx.x];
    id = id < 0 || id >= a.vocabulary ? 0 : id;  // what follows is not read then, or was refused before
    const u8* row = a.data + id * a.row_bytes;
    const int blocks = (a.columns + (1 << a.block_log2) - 1) >> a.block_log2, zero_bytes = (blocks * bits + 7) / 8;
    for (int k = threadIdx.x; k < a.columns; k += blockDim.x) {
        float x;
        if (bits == 16) {
            x = T::from(((const u16*)row)[k]);
        } else {
            const int block = k >> a.block_log2, per_byte = bits == 4 ? 2 : 1, mask = (1 << bits) - 1;
            const int q = row[k / per_byte] >> bits * (k % per_byte) & mask;
            const int zero = a.zeros ? a.zeros[id * zero_bytes + block / per_byte] >> bits * (block % per_byte) & mask : 1 << (bits - 1);
            x = (float)(q - zero) * T::from(a.scales[id * blocks + block]);
        }
        a.x[(i64)blockIdx.x * a.columns + k] = x;
    }
}

// Larger keys are larger logits, and of equal ones the earlier; what is no number is above all.
__device__ inline u64 order(float x, int index) {
    u32 bits = __float_as_uint(x);
    bits = x != x ? 0xffffffffu : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (u64)bits << 32 | (0xffffffffu - (u32)index);
}
__device__ inline u64 largest(u64 x) {
#pragma unroll
    for (int step = 16; step; step /= 2) {
        const u64 other = __shfl_xor_sync(0xffffffffu, x, step);
        x = other > x ? other : x;
    }
    return x;
}

__device__ inline void argmax(const ArgMaxArguments& a) {
    __shared__ u64 best[8];
    __shared__ bool is_last;
    let_next_begin();
    wait_for_previous();
    const int token = blockIdx.y, parts = gridDim.x;
    u64 mine = 0;
    for (int i = blockIdx.x * 256 + threadIdx.x; i < a.vocabulary; i += parts * 256) {
        const u64 key = order(a.logits[(i64)token * a.vocabulary + i], i);
        mine = key > mine ? key : mine;
    }
    mine = largest(mine);
    if (threadIdx.x % 32 == 0) best[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < 8; ++i) mine = best[i] > mine ? best[i] : mine;
        a.parts[token * parts + blockIdx.x] = mine;
        __threadfence();
        is_last = atomicAdd(a.arrived + token, 1) == parts - 1;
    }
    __syncthreads();
    if (!is_last || threadIdx.x >= 32) return;
    __threadfence();
    mine = 0;
    for (int i = threadIdx.x; i < parts; i += 32) {
        const u64 key = __ldcg(a.parts + token * parts + i);
        mine = key > mine ? key : mine;
    }
    mine = largest(mine);
    if (threadIdx.x == 0) {
        a.ids[token] = (u32)(mine >> 32) == 0xffffffffu ? -1 : (i64)(0xffffffffu - (u32)mine);
        a.arrived[token] = 0;
    }
}
