// The operators of the domain "helium_onnx.kernels", for ONNX Runtime's CPU provider.
//
// QuantizedLinear(x [batch, tokens, columns], then of each matrix: quanta uint8, scales [, zeros uint8])
//     -> [batch, tokens, sum of rows]: the products with all matrices, one behind the other, x quantized once. Scales
//     are float32 or float16.
//     Attributes: columns; rows, bits, block_size and has_zeros, a list each with one value a matrix; gated: x is
//     [batch, tokens, 2 * columns] and silu(first half) * second half is multiplied; last: of the last token alone.
// CausalAttention(qkv [batch, tokens, (num_heads + 2 * kv_num_heads) * head_dim], past_key, past_value, past_lengths
//     int64 [batch], cos_cache, sin_cache [positions, head_dim / 2]) -> (output [batch, tokens, num_heads * head_dim],
//     present_key, present_value). Past and present are [batch, kv_num_heads, capacity, head_dim] and may be one
//     buffer. Attributes: num_heads, kv_num_heads, head_dim, interleaved. CausalAttentionFloat16 has past
//     and present in float16. The tables may be float32 or float16 in either.
// CausalAttentionInt8(qkv, cos_cache, sin_cache) -> output: the same without a past, from token 0 on, over queries and
//     keys in 8 bits (a scale for each 64 of a head, or a smaller power of 2 that divides it), values (a scale each) and
//     their shares times these scales (a scale for each 128 keys).
// LowRankUpdate(y [batch, tokens, sum of rows], x [batch, tokens, columns], then of each matrix: a [columns, rank],
//     b [rank, rows]) -> y + x a b, each matrix's product behind the other. All float32. A rank may be 0, and differs from
//     call to call. Attributes: columns, rows and gated, as above.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "half.h"
#include "kernels.h"
#include "ort_operator.h"

namespace helium {

const Kernels* best_kernels() {
    static const Kernels* best = [] {
        for (auto table : {avx512_kernels, avx2_kernels})
            if (const Kernels* found = table()) return found;
        return generic_kernels();
    }();
    return best;
}

namespace {

const Kernels* g_kernels = best_kernels();

// Memory of the calling thread that is kept from call to call.
struct Buffer {
    char* data = nullptr;
    size_t size = 0;
    ~Buffer() { std::free(data); }
    char* at_least(size_t bytes) {
        if (size < bytes) {
            std::free(data);
            size = (bytes + 4095) / 4096 * 4096;
            data = (char*)std::aligned_alloc(64, size);
            if (!data) size = 0;
        }
        return data;
    }
};
thread_local Buffer t_activations, t_scratch, t_query;

// How far the calling thread's pieces of one call lie apart: ONNX Runtime lets a thread take them in order, beside
// others or not. Half of the time of a piece of 32 rows goes if its first ones are not fetched while the last piece runs.
struct Pieces {
    const void* call = nullptr;
    int64_t last = 0;
    int64_t step(const void* now, int64_t i) {
        const int64_t found = call == now && i > last ? i - last : 1;
        call = now, last = i;
        return found;
    }
};
thread_local Pieces t_pieces;

Status data_of(const Calls& ort, const ort::Context* context, size_t i, void** out) {
    const ort::Value* value = nullptr;
    RETURN_IF_ERROR(ort.input(context, i, &value));
    return ort.data(value, out);
}

template <class Work>
Status parallel(const Calls& ort, const ort::Context* context, int64_t total, const Work& work) {
    if (total == 1) {
        work(0);
        return nullptr;
    }
    return ort.parallel(context, [](void* user, size_t i) { (*(const Work*)user)((int64_t)i); }, (size_t)total, (void*)&work);
}

struct QuantizedLinear {
    static constexpr const char *kName = "QuantizedLinear", *kProvider = nullptr;
    static constexpr size_t kInputs = 2, kOutputs = 1, kVariadic = 1;
    static int input_type(size_t i) { return i == 0 ? ort::kFloat : ort::kUndefined; }
    static int output_type(size_t) { return ort::kFloat; }

    Calls ort;
    int64_t columns = 0, gated = 0, last = 0;
    std::vector<int64_t> rows, bits, block_size, has_zeros;
    // Of the weights, which are constants and checked once: bit i is set where matrix i has scales in float16.
    mutable std::atomic<int64_t> half_scales{-1};

    Status init(const void* info) {
        RETURN_IF_ERROR(ort.attribute(info, "columns", &columns));
        RETURN_IF_ERROR(ort.attribute(info, "gated", &gated));
        RETURN_IF_ERROR(ort.attribute(info, "last", &last));
        RETURN_IF_ERROR(list(ort, info, "rows", &rows));
        RETURN_IF_ERROR(list(ort, info, "bits", &bits));
        RETURN_IF_ERROR(list(ort, info, "block_size", &block_size));
        RETURN_IF_ERROR(list(ort, info, "has_zeros", &has_zeros));
        if (rows.size() > 62) return ort.error(ort::kInvalidArgument, "QuantizedLinear: more than 62 matrices");
        if (columns < 1 || bits.size() != rows.size() || block_size.size() != rows.size() || has_zeros.size() != rows.size())
            return ort.error(ort::kInvalidArgument, "QuantizedLinear: the attributes' lists differ in length");
        for (size_t i = 0; i < rows.size(); ++i) {
            const bool known = rows[i] > 0 && (bits[i] == 4 || bits[i] == 8) && block_size[i] >= 16 && block_size[i] <= 256;
            if (!known || (block_size[i] & (block_size[i] - 1)))
                return ort.error(ort::kInvalidArgument, "QuantizedLinear: bits are 4 or 8, block sizes powers of 2 from 16 to 256");
        }
        return nullptr;
    }

    Status check(const ort::Context* context) const {
        int type = 0;
        const auto elements = [&](size_t i, bool scales, int64_t expected) -> Status {
            Tensor t;
            RETURN_IF_ERROR(read_input(ort, context, i, &t));
            type = t.type;
            const bool known = scales ? type == ort::kFloat || type == ort::kFloat16 : type == ort::kUint8;
            const bool right = known && t.dims[0] * t.dims[1] * t.dims[2] * t.dims[3] == expected;
            return right ? nullptr : ort.error(ort::kInvalidArgument, "QuantizedLinear: weights have another type or size than the attributes say");
        };
        size_t at = 1, given = 0;
        RETURN_IF_ERROR(ort.input_count(context, &given));
        for (size_t i = 0; i < rows.size(); ++i) at += has_zeros[i] ? 3 : 2;
        if (at != given) return ort.error(ort::kInvalidArgument, "QuantizedLinear: another number of weights than the attributes say");
        at = 1;
        int64_t half = 0;
        for (size_t i = 0; i < rows.size(); ++i) {
            const Matrix m{nullptr, nullptr, nullptr, rows[i], columns, block_size[i], bits[i], false};
            RETURN_IF_ERROR(elements(at++, false, m.rows * m.pitch()));
            RETURN_IF_ERROR(elements(at++, true, m.rows * m.blocks()));
            if (type == ort::kFloat16) half |= int64_t(1) << i;
            if (has_zeros[i]) RETURN_IF_ERROR(elements(at++, false, m.rows * m.zero_pitch()));
        }
        half_scales = half;
        return nullptr;
    }

    // Matrices of equal bits and block size read the same quantized activations.
    struct Quantized {
        int64_t bits, block_size;
        Activations activations;
    };

    Status compute(ort::Context* context) const {
        if (half_scales < 0) RETURN_IF_ERROR(check(context));
        const int64_t half = half_scales;
        const Kernels& kernels = *g_kernels;
        Tensor x;
        RETURN_IF_ERROR(read_input(ort, context, 0, &x));
        const int64_t width = columns * (gated ? 2 : 1), batch = x.dims[0], tokens = x.dims[1];
        if (x.rank != 3 || x.dims[2] != width) return ort.error(ort::kInvalidArgument, "QuantizedLinear: x has another width");
        const int64_t kept = last ? std::min<int64_t>(1, tokens) : tokens, total_rows = batch * kept;
        std::vector<Matrix> matrices;
        int64_t output_pitch = 0;
        for (size_t i = 0, at = 1; i < rows.size(); ++i) {
            void *quanta, *scales, *zeros = nullptr;  // their shapes are the attributes'
            RETURN_IF_ERROR(data_of(ort, context, at++, &quanta));
            RETURN_IF_ERROR(data_of(ort, context, at++, &scales));
            if (has_zeros[i]) RETURN_IF_ERROR(data_of(ort, context, at++, &zeros));
            matrices.push_back({(const uint8_t*)quanta, scales, (const uint8_t*)zeros, rows[i], columns, block_size[i],
                                bits[i], (half >> i & 1) != 0});
            output_pitch += rows[i];
        }
        const int64_t dims[3] = {batch, kept, output_pitch};
        ort::Value* value = nullptr;
        Tensor y;
        RETURN_IF_ERROR(ort.output(context, 0, dims, 3, &value));
        RETURN_IF_ERROR(ort.data(value, (void**)&y.data));
        if (total_rows == 0) return nullptr;

        std::vector<Quantized> kinds;
        size_t bytes = 0;
        for (const Matrix& m : matrices) {
            const auto same = [&](const Quantized& q) { return q.bits == m.bits && q.block_size == m.block_size; };
            if (std::any_of(kinds.begin(), kinds.end(), same)) continue;
            const int64_t padded = (m.blocks() * m.block_size + 63) / 64 * 64;
            kinds.push_back({m.bits, m.block_size, {nullptr, nullptr, nullptr, total_rows, padded, m.blocks()}});
            bytes += total_rows * (padded + 8 * m.blocks()) + 192;
        }
        char* memory = t_activations.at_least(bytes);
        if (!memory) return ort.error(ort::kFail, "QuantizedLinear: Failed to allocate memory");
        const auto take = [&](size_t n) {
            char* taken = memory;
            memory += (n + 63) / 64 * 64;
            return taken;
        };
        for (Quantized& kind : kinds) {
            Activations& a = kind.activations;
            int8_t* quanta = (int8_t*)take(total_rows * a.padded);
            float* scales = (float*)take(total_rows * a.blocks * 4);
            float* sums = (float*)take(total_rows * a.blocks * 4);
            a.quanta = quanta, a.scales = scales, a.sums = sums;
            RETURN_IF_ERROR(parallel(ort, context, total_rows, [&](int64_t r) {
                const int64_t token = last ? (r + 1) * tokens - 1 : r;
                kernels.quantize_row((const float*)x.data + token * width, columns, kind.block_size, kind.bits == 4, gated,
                                     quanta + r * a.padded, scales + r * a.blocks, sums + r * a.blocks);
            }));
        }

        // Chunks of rows: enough of them for many threads to share evenly, none so small that its start counts.
        const int64_t chunk = std::min<int64_t>(std::max<int64_t>(output_pitch / 96 / 32 * 32, 32), 256);
        struct Piece {
            const Matrix* matrix;
            const Activations* activations;
            int64_t column, begin, end;
        };
        std::vector<Piece> pieces;
        int64_t column = 0, scratch = 0;
        for (const Matrix& m : matrices) {
            const auto fits = [&](const Quantized& q) { return q.bits == m.bits && q.block_size == m.block_size; };
            const Activations* a = &std::find_if(kinds.begin(), kinds.end(), fits)->activations;
            for (int64_t n = 0; n < m.rows; n += chunk) pieces.push_back({&m, a, column, n, std::min(m.rows, n + chunk)});
            column += m.rows;
            scratch = std::max(scratch, kernels.scratch_bytes(m));
        }
        bool failed = false;
        RETURN_IF_ERROR(parallel(ort, context, (int64_t)pieces.size(), [&](int64_t i) {
            const Piece& p = pieces[i];
            char* memory = t_scratch.at_least(scratch);
            if (!memory) {
                failed = true;
                return;
            }
            const size_t then = (size_t)(i + t_pieces.step(y.data, i));
            const bool goes_on = then < pieces.size() && pieces[then].matrix == p.matrix;
            kernels.multiply(*p.matrix, *p.activations, p.begin, p.end, goes_on ? pieces[then].begin : p.end,
                             (float*)y.data + p.column, output_pitch, memory);
        }));
        return failed ? ort.error(ort::kFail, "QuantizedLinear: Failed to allocate memory") : nullptr;
    }
};

// Attributes of attention, under an operator's name.
Status attention_sizes(const Calls& ort, const void* info, const char* name, int64_t* heads, int64_t* groups, int64_t* size, int64_t* interleaved) {
    RETURN_IF_ERROR(ort.attribute(info, "num_heads", heads));
    RETURN_IF_ERROR(ort.attribute(info, "kv_num_heads", groups));
    RETURN_IF_ERROR(ort.attribute(info, "head_dim", size));
    RETURN_IF_ERROR(ort.attribute(info, "interleaved", interleaved));
    if (*size % 16 || *size < 16 || *size > 1024 || *groups < 1 || *heads % *groups)
        return ort.error(ort::kInvalidArgument, (std::string(name) + ": head_dim is no multiple of 16, or heads do not group").c_str());
    return nullptr;
}

Status check_tables(const Calls& ort, const Tensor& cosines, const Tensor& sines, int64_t size) {
    for (const Tensor& table : {cosines, sines})
        if ((table.type != ort::kFloat && table.type != ort::kFloat16) || table.dims[1] != size / 2 || table.dims[0] != cosines.dims[0])
            return ort.error(ort::kInvalidArgument, "CausalAttention: the tables are not [positions, head_dim / 2]");
    return nullptr;
}

// A position's row of a table of either type; `copy` has room for it.
const float* angles(const Tensor& table, int64_t position, int64_t size, float* copy) {
    if (table.type == ort::kFloat) return (const float*)table.data + position * size / 2;
    const auto* row = (const uint16_t*)table.data + position * size / 2;
    std::transform(row, row + size / 2, copy, from_half);
    return copy;
}

template <bool kHalf>
struct CausalAttention {
    static constexpr const char *kName = kHalf ? "CausalAttentionFloat16" : "CausalAttention", *kProvider = nullptr;
    static constexpr size_t kInputs = 6, kOutputs = 3, kVariadic = kNone;
    static int input_type(size_t i) {
        if (i == 3) return ort::kInt64;
        return i > 3 ? ort::kUndefined : output_type(i);  // tables: float32 or float16
    }
    static int output_type(size_t i) { return i > 0 && kHalf ? ort::kFloat16 : ort::kFloat; }

    Calls ort;
    int64_t heads = 0, groups = 0, size = 0, interleaved = 0;

    Status init(const void* info) { return attention_sizes(ort, info, "CausalAttention", &heads, &groups, &size, &interleaved); }

    Status compute(ort::Context* context) const {
        const Kernels& kernels = *g_kernels;
        constexpr int64_t element = kHalf ? 2 : 4;
        Tensor x, past[2], lengths, cosines, sines;
        RETURN_IF_ERROR(read_input(ort, context, 0, &x));
        RETURN_IF_ERROR(read_input(ort, context, 1, &past[0]));
        RETURN_IF_ERROR(read_input(ort, context, 2, &past[1]));
        RETURN_IF_ERROR(read_input(ort, context, 3, &lengths));
        RETURN_IF_ERROR(read_input(ort, context, 4, &cosines));
        RETURN_IF_ERROR(read_input(ort, context, 5, &sines));
        const int64_t batch = x.dims[0], tokens = x.dims[1], width = (heads + 2 * groups) * size, capacity = past[0].dims[2];
        const auto* before = (const int64_t*)lengths.data;
        RETURN_IF_ERROR(check_tables(ort, cosines, sines, size));
        if (x.rank != 3 || x.dims[2] != width || lengths.dims[0] != batch)
            return ort.error(ort::kInvalidArgument, "CausalAttention: qkv or past_lengths have another shape");
        for (const Tensor& t : past)
            if (t.rank != 4 || t.dims[0] != batch || t.dims[1] != groups || t.dims[2] != capacity || t.dims[3] != size)
                return ort.error(ort::kInvalidArgument, "CausalAttention: past is not [batch, kv_num_heads, capacity, head_dim]");
        for (int64_t b = 0; b < batch; ++b)
            if (before[b] < 0 || before[b] + tokens > std::min(capacity, cosines.dims[0]))
                return ort.error(ort::kInvalidArgument, "CausalAttention: more tokens than past has room for");

        Tensor y, present[2];
        const int64_t dims[3] = {batch, tokens, heads * size};
        ort::Value* value = nullptr;
        RETURN_IF_ERROR(ort.output(context, 0, dims, 3, &value));
        RETURN_IF_ERROR(ort.data(value, (void**)&y.data));
        for (int i = 0; i < 2; ++i) {
            RETURN_IF_ERROR(ort.output(context, i + 1, past[i].dims, 4, &value));
            RETURN_IF_ERROR(ort.data(value, (void**)&present[i].data));
            if (present[i].data != past[i].data)
                std::memcpy(present[i].data, past[i].data, batch * groups * capacity * size * element);
        }
        const int64_t query_pitch = heads * size;
        float* queries = (float*)t_query.at_least(std::max<int64_t>(1, batch * tokens * query_pitch * 4));
        if (!queries) return ort.error(ort::kFail, "CausalAttention: Failed to allocate memory");

        // Of a few tokens all is done head by head; of many, turning comes first, then heads and tokens in pieces.
        const int64_t piece = 32, pieces = (tokens + piece - 1) / piece, ratio = heads / groups;
        const auto turn = [&](int64_t b, int64_t group, int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                const float* row = (const float*)x.data + (b * tokens + t) * width;
                const int64_t position = before[b] + t;
                float copies[2][512];
                const float *c = angles(cosines, position, size, copies[0]), *s = angles(sines, position, size, copies[1]);
                for (int64_t h = group * ratio; h < (group + 1) * ratio; ++h)
                    kernels.rotate(row + h * size, c, s, size, interleaved, queries + (b * tokens + t) * query_pitch + h * size);
                float key[1024];
                kernels.rotate(row + (heads + group) * size, c, s, size, interleaved, key);
                const int64_t slot = ((b * groups + group) * capacity + position) * size;
                kernels.keep(key, size, kHalf, present[0].data + slot * element);
                kernels.keep(row + (heads + groups + group) * size, size, kHalf, present[1].data + slot * element);
            }
        };
        const auto attend = [&](int64_t b, int64_t head, int64_t begin, int64_t end) {
            const int64_t start = b * groups * capacity * size * element;
            const Attention a{queries + b * tokens * query_pitch,
                              (float*)y.data + b * tokens * query_pitch,
                              present[0].data + start,
                              present[1].data + start,
                              kHalf,
                              tokens,
                              before[b],
                              query_pitch,
                              query_pitch,
                              capacity,
                              size,
                              1.0f / std::sqrt((float)size)};
            kernels.attend(a, head, head / ratio, begin, end);
        };
        if (pieces <= 1)
            return parallel(ort, context, batch * groups, [&](int64_t i) {
                const int64_t b = i / groups, group = i % groups;
                turn(b, group, 0, tokens);
                for (int64_t h = group * ratio; h < (group + 1) * ratio; ++h) attend(b, h, 0, tokens);
            });
        RETURN_IF_ERROR(parallel(ort, context, batch * groups * pieces, [&](int64_t i) {
            const int64_t p = i % pieces, group = i / pieces % groups, b = i / pieces / groups;
            turn(b, group, p * piece, std::min(tokens, (p + 1) * piece));
        }));
        return parallel(ort, context, batch * heads * pieces, [&](int64_t i) {
            const int64_t p = i % pieces, head = i / pieces % heads, b = i / pieces / heads;
            attend(b, head, p * piece, std::min(tokens, (p + 1) * piece));
        });
    }
};

#ifndef HELIUM_GENERATION_ONLY  // the library for apps has no whole texts
#include "attention_int8.inl"
#endif
#include "low_rank.inl"

}  // namespace
}  // namespace helium

#define HELIUM_EXPORT __attribute__((visibility("default")))

extern "C" {

// What ONNX Runtime looks for in a library of custom operators.
HELIUM_EXPORT ort::Status RegisterCustomOps(void* options, const ort::ApiBase* base) {
    using namespace helium;
    static const Registration<QuantizedLinear> linear;
    static const Registration<CausalAttention<false>> attention;
    static const Registration<CausalAttention<true>> attention_half;
    static const Registration<LowRankUpdate> low_rank;
    const Calls ort{base->get_api(ort::kApiVersion)};
#ifdef HELIUM_GENERATION_ONLY
    return register_operators(ort, options, {&linear, &attention, &attention_half, &low_rank});
#else
    static const Registration<CausalAttentionInt8> attention_int8;
    return register_operators(ort, options, {&linear, &attention, &attention_half, &attention_int8, &low_rank});
#endif
}

// "none" where this processor has no vectors and the build no plain C++: the operators cannot run then.
HELIUM_EXPORT const char* helium_kernels_name() { return helium::g_kernels ? helium::g_kernels->name : "none"; }

// For tests: run with another instruction set's functions. 0 where this processor or build has none of that name.
HELIUM_EXPORT int helium_use_kernels(const char* name) {
    for (auto table : {helium::avx512_kernels, helium::avx2_kernels, helium::generic_kernels})
        if (const helium::Kernels* found = table(); found && std::string_view(found->name) == name) {
            helium::g_kernels = found;
            return 1;
        }
    return 0;
}

}  // extern "C"
