// What an instruction set's file (avx512.cpp, avx2.cpp, generic.cpp) gives the operators: one table of functions.
//
// Every function gives the same bits in all three, for one row of activations as for many, whatever threads run it:
// integer sums are exact, and floating-point operations have one order, written down where they are declared.
#pragma once

#include <cstddef>
#include <cstdint>

namespace helium {

// A matrix [rows, columns] as MatMulNBits stores it: blocks of `block_size` weights along a row, `bits` 4 or 8 each.
// A weight is (quantum - zero) * scale. Columns beyond the last, up to a whole block, meet activations of 0.
struct Matrix {
    const uint8_t* quanta;  // [rows, blocks, block_size * bits / 8]; of two 4-bit quanta in a byte the lower comes first
    const void* scales;     // [rows, blocks], float32 or float16
    const uint8_t* zeros;   // [rows, ceil(blocks * bits / 8)], packed as quanta are; null: 2^(bits - 1) throughout
    int64_t rows, columns, block_size, bits;
    bool half_scales;       // float16

    int64_t blocks() const { return (columns + block_size - 1) / block_size; }
    int64_t pitch() const { return blocks() * block_size * bits / 8; }        // bytes of a row of quanta
    int64_t zero_pitch() const { return (blocks() * bits + 7) / 8; }          // bytes of a row of zeros
    int64_t scale_pitch() const { return blocks() * (half_scales ? 2 : 4); }  // bytes of a row of scales
};

// Rows of activations in 8 bits: x = quantum * scale, a scale for each block; see quantize_row.
struct Activations {
    const int8_t* quanta;  // [rows, padded]; within each 64, for 4-bit weights: the even columns, then the odd ones
    const float* scales;   // [rows, blocks]
    const float* sums;     // [rows, blocks]: of the block's quanta, as a whole number
    int64_t rows, padded, blocks;
};

// Keys and values of one sequence and one layer in buffers of `capacity` tokens, and the queries to answer.
struct Attention {
    const float* query;   // [tokens, query_pitch], rotated
    float* output;        // [tokens, output_pitch]
    const void* keys;     // [key/value heads, capacity, head_size], rotated, those of the new tokens included
    const void* values;   // the same
    bool half;            // keys and values are float16, else float32
    int64_t tokens, past, query_pitch, output_pitch, capacity, head_size;
    float scale;
};

struct Kernels {
    const char* name;
    int64_t lanes;  // rows of a matrix that `multiply` handles together

    // Quantize one row of activations. Of each block: scale = max |x| / 127, quantum = round(x * (127 / max |x|)), or 0
    // where max |x| is no more than 1e-36. A row with a NaN or an infinity has scales of NaN throughout.
    // `paired` orders columns as 4-bit weights do. With `gated`, x[i] is silu(row[i]) * row[columns + i].
    void (*quantize_row)(const float* row, int64_t columns, int64_t block_size, bool paired, bool gated,
                         int8_t* quanta, float* scales, float* sums);

    // output[m * output_pitch + n] for the matrix's rows n in [begin, end), `begin` a multiple of `lanes`. Of each
    // block b, in order: sum = fma(dot - zero * block sum, weight scale * activation scale, sum).
    // `next`: the row that the calling thread will most likely begin with then, so that it can be fetched; or `end`.
    // `scratch` holds scratch_bytes(matrix) bytes, 64-aligned.
    void (*multiply)(const Matrix& matrix, const Activations& activations, int64_t begin, int64_t end, int64_t next,
                     float* output, int64_t output_pitch, void* scratch);
    int64_t (*scratch_bytes)(const Matrix& matrix);

    // One head of one token: query and key vectors, turned by the position's angles; then kept as float32 or float16.
    // `interleaved` turns the pairs (0, 1), (2, 3) ...; else (0, size / 2), (1, size / 2 + 1) ...
    void (*rotate)(const float* x, const float* cosines, const float* sines, int64_t size, bool interleaved, float* out);
    void (*keep)(const float* x, int64_t size, bool half, void* out);

    // Causal attention of one head for the tokens [begin, end): query head `head` over key/value head `group`.
    void (*attend)(const Attention& attention, int64_t head, int64_t group, int64_t begin, int64_t end);

    // exp(scale * (score - largest)) of n > 0 scores in place, 0 up to the next 16; returns 1 / their sum. There is room
    // for that many.
    float (*softmax)(float* scores, int64_t n, float scale);

    // Measured rates of this instruction set's arithmetic, on the calling thread: operations in `rounds` rounds.
    double (*int8_operations)(int64_t rounds);
    double (*float_operations)(int64_t rounds);
    uint64_t (*read)(const uint8_t* data, int64_t bytes);  // bytes a multiple of 256: reads all, returns some sum
};

const Kernels* avx512_kernels();  // null where the processor or this build lacks it
const Kernels* avx2_kernels();
const Kernels* generic_kernels();

}  // namespace helium
