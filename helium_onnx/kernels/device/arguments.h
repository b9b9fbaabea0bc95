// What the host gives the device kernels: their arguments, and what a launch must know of them. Read by both compilers.
#pragma once

#ifdef __CUDACC__
#define HELIUM_BOTH __host__ __device__
#else
#define HELIUM_BOTH
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct LinearArguments {
    const float* x;         // [tokens, columns]
    const u16* norm;        // [columns] or null: x is RMS-normed with these weights
    const float* residual;  // [tokens, rows] or null: added to y
    const float* gate;      // [tokens, rows] or null: y is multiplied by silu(gate)
    float* y;               // [tokens, stride], written from column `offset` on
    const u8* data[2];      // [rows, row_bytes]; of two matrices (gate, up) y is silu(first x) * (second x)
    const u16* scales[2];   // [rows, blocks]
    const u8* zeros[2];     // [rows, bytes of blocks values of `bits`] or null: 2 ** (bits - 1)
    int tokens, columns;    // at most 8; a multiple of 8
    int rows, stride, offset, row_bytes;  // rows: of each matrix, a multiple of 8
    int matrices;
    float epsilon;
    // By `arrange`:
    int groups_each, groups_over;  // groups of a block, and how many blocks have one more
    int rows_log2;                 // of the rows that a group has of each matrix
    int parts, spans, slots;       // units of a row; stretches of kSpan columns; warps that a group may have
    u32 by_parts, by_spans;        // reciprocals
};

#ifndef HELIUM_DEPTH
#define HELIUM_DEPTH 3  // units in flight; the library is told which its kernels were compiled with
#endif

#ifndef HELIUM_WARPS
#define HELIUM_WARPS 16
#endif
constexpr int kWarps = HELIUM_WARPS, kGroup = 8, kSpan = 256;  // of linear; kSpan: columns whose activations share a scale
constexpr int kSlots = 4, kMaxTokens = 8, kFew = 2;  // kFew: tokens whose slots of columns are rows of one product

// How a matrix is stored: `block` weights share a scale and a zero point of `bits` bits; plain ones (16) have neither.
template <int bits_, int block_, bool zeros_>
struct Storage {
    static constexpr int bits = bits_, block = block_;
    static constexpr bool zeros = zeros_, quantized = bits != 16;
    static constexpr int unit_bytes = 256, depth = HELIUM_DEPTH;  // of a row; units in flight
    static constexpr int unit = unit_bytes * 8 / bits;            // columns
    static constexpr int blocks = quantized ? unit / block : 0;   // of a unit
    // A slot: columns that are summed as whole numbers, of one block. Four make a round, of as many chunks of 16 bytes each.
    static constexpr int slot = quantized ? (block < unit / kSlots ? block : unit / kSlots) : 1;
    static constexpr int rounds = quantized ? unit / (kSlots * slot) : 0, chunks = slot * bits / 128;
    // Words of four bytes beside a unit's row, from the one that its first scale or zero point lies in; or pieces of eight.
    static constexpr bool wide = quantized && blocks % 4 == 0;
    static constexpr int pieces = wide ? blocks / 4 : 1;
    static constexpr int scale_words = wide ? blocks / 2 + 2 : blocks / 2 + 1, zero_words = zeros ? (blocks * bits / 8 + 3) / 4 + 1 : 0;
    static constexpr int side_bytes = quantized ? 4 * kGroup * (scale_words + zero_words) : 0;
    static constexpr int weight_bytes = kGroup * unit_bytes, stage_bytes = weight_bytes + side_bytes;
    static constexpr int ring_bytes = depth * stage_bytes;  // of a warp
    static constexpr int x_bytes = quantized ? 2 : 4;       // of an activation
};

// The same for the host, which chooses a kernel at run time.
struct StorageSizes {
    int bits, block, unit, stage_bytes, x_bytes, slot;
    template <class S>
    HELIUM_BOTH static constexpr StorageSizes of() {
        return {S::bits, S::block, S::unit, S::stage_bytes, S::x_bytes, S::slot};
    }
};

HELIUM_BOTH inline int rounded_up(int n, int unit) { return (n + unit - 1) / unit * unit; }
// Of one token in shared memory; 16: another bank a token.
HELIUM_BOTH inline int token_bytes(int x_bytes, int padded) { return x_bytes * padded + 16; }

// Such that n / divisor is the upper half of n * reciprocal, for n * divisor below 2 ** 32; 0 for 1.
HELIUM_BOTH inline u32 reciprocal_of(int divisor) { return divisor == 1 ? 0 : 0xffffffffu / (u32)divisor + 1; }

// Share the work out over at most `processors` blocks; how many there are. `tokens` do not matter.
HELIUM_BOTH inline int arrange(LinearArguments& a, const StorageSizes& s, int processors) {
    const int groups = a.rows * a.matrices / kGroup, grid = groups < processors ? groups : processors;
    a.groups_each = groups / grid, a.groups_over = groups % grid, a.rows_log2 = a.matrices == 2 ? 2 : 3;
    a.parts = (a.columns + s.unit - 1) / s.unit, a.spans = rounded_up(a.columns, s.unit > kSpan ? s.unit : kSpan) / kSpan;
    a.slots = kWarps / a.groups_each + 2, a.by_parts = reciprocal_of(a.parts), a.by_spans = reciprocal_of(a.spans);
    if (a.matrices == 1) {  // rows 4 to 7 of a group are found as those of a second matrix are
        const int blocks = s.block ? (a.columns + s.block - 1) / s.block : 0, zero_bytes = (blocks * s.bits + 7) / 8;
        a.data[1] = a.data[0] + 4 * (i64)a.row_bytes;
        a.scales[1] = a.scales[0] + 4 * blocks;
        a.zeros[1] = a.zeros[0] ? a.zeros[0] + 4 * zero_bytes : a.zeros[0];
    }
    return grid;
}

// Bytes of shared memory that a launch asks for, with `depth` units in flight.
HELIUM_BOTH inline int linear_shared_bytes(const StorageSizes& s, int depth, const LinearArguments& a) {
    const int groups = a.groups_each + (a.groups_over ? 1 : 0), padded = a.spans * kSpan, sums = a.zeros[0] ? padded / s.slot : 0;
    return kWarps * depth * s.stage_bytes + a.tokens * token_bytes(s.x_bytes, padded) +
           4 * a.tokens * (2 * a.spans + sums + 1 + groups * a.slots * kGroup) + 64;
}

struct AttentionArguments {
    const float* qkv;        // [batch, (heads + 2 * kv_heads) * size]
    void *keys, *values;     // u16 or int8 codes [batch, kv_heads, capacity, size], read and written
    const int* last;         // [batch]: the new token's position
    const u16 *cos, *sin;    // [positions, size / 2]
    float* output;           // [batch, heads * size]
    float* parts;            // [batch, heads, kSplits, size + 2]: sums, then their maximum and weight
    unsigned* arrived;       // [batch, kv_heads], zero; zero again afterwards
    int heads, kv_heads, capacity, interleaved;
    const float *key_scales, *value_scales;  // [kv_heads, size], of codes
};

constexpr int kSplits = 8, kAttentionThreads = 256;

struct EmbeddingArguments {
    const i64* ids;      // [tokens]
    const u8* data;      // [vocabulary, ...]
    const u16* scales;   // [vocabulary, blocks], of quantized data
    const u8* zeros;     // or null
    float* x;            // [tokens, columns]
    int columns, row_bytes, block_log2, vocabulary;
};

struct ArgMaxArguments {
    const float* logits;  // [tokens, vocabulary]
    i64* ids;             // [tokens]: the first of the largest; -1 where a logit is no number
    u64* parts;           // [tokens, blocks]
    unsigned* arrived;    // [tokens], zero; zero again afterwards
    int vocabulary;
};
