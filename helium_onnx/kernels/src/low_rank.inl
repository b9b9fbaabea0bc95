// LowRankUpdate: what LoRA adapters add to the products of QuantizedLinear. Included by operators.cpp.
//
// The order of every sum is that of its columns, in pieces of kChunk, so that a token's bits do not depend on how many
// tokens a call takes, nor on the threads.

// Four floats at a time, in any compiler's plainest vector code; a processor's own would give the same bits.
typedef float Four __attribute__((vector_size(16)));

inline Four load(const float* from) {
    Four x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

// silu(x) * y, with vectors.inl's exponential, each product and each sum rounded.
inline Four gate(Four x, Four y) {
    Four z = -x;
    z = z > 88.0f ? Four{} + 88.0f : z;  // a NaN stays one
    z = z < -87.0f ? Four{} - 87.0f : z;
    const Four n = z * 1.44269504088896341f + 12582912.0f - 12582912.0f;  // to the nearest whole number
    z = z - n * 0.693359375f + n * 2.12194440e-4f;
    Four e = z * 1.9875691500e-4f + 1.3981999507e-3f;
    e = e * z + 8.3334519073e-3f;
    e = e * z + 4.1665795894e-2f;
    e = e * z + 1.6666665459e-1f;
    e = e * z + 5.0000001201e-1f;
    e = e * (z * z) + z + 1.0f;
    typedef int32_t Ints __attribute__((vector_size(16)));
    const Ints bits = (__builtin_convertvector(n, Ints) + 127) << 23;
    Four power;
    std::memcpy(&power, &bits, sizeof power);
    return x / (e * power + 1.0f) * y;
}

// out[k] = silu(x[k]) * x[columns + k]
inline void gate_all(const float* x, int64_t columns, float* out) {
    int64_t k = 0;
    for (; k + 4 <= columns; k += 4) {
        const Four product = gate(load(x + k), load(x + columns + k));
        std::memcpy(out + k, &product, sizeof product);
    }
    if (k < columns) {
        Four first = {}, second = {};
        for (int64_t i = 0; i < columns - k; ++i) first[i] = x[k + i], second[i] = x[columns + k + i];
        const Four product = gate(first, second);
        for (int64_t i = 0; i < columns - k; ++i) out[k + i] = product[i];
    }
}

// sums[t][j] = sum over k of x[t][k] * a[k][j] for T tokens and 4 W values of j: the even k, and the odd ones.
template <int T, int W>
void project(const float* x, int64_t pitch, const float* a, int64_t count, int64_t rank, float* sums, int64_t sums_pitch) {
    Four even[T][W] = {}, odd[T][W] = {};
    int64_t k = 0;
    for (; k + 2 <= count; k += 2)
        for (int w = 0; w < W; ++w) {
            const Four first = load(a + k * rank + 4 * w), second = load(a + (k + 1) * rank + 4 * w);
            for (int t = 0; t < T; ++t) {
                even[t][w] += x[t * pitch + k] * first;
                odd[t][w] += x[t * pitch + k + 1] * second;
            }
        }
    for (int t = 0; t < T; ++t)
        for (int w = 0; w < W; ++w) {
            if (k < count) even[t][w] += x[t * pitch + k] * load(a + k * rank + 4 * w);
            const Four sum = even[t][w] + odd[t][w];
            std::memcpy(sums + t * sums_pitch + 4 * w, &sum, sizeof sum);
        }
}

template <int T>
void project_all(const float* x, int64_t pitch, const float* a, int64_t count, int64_t rank, float* sums, int64_t sums_pitch) {
    int64_t j = 0;
    if constexpr (T == 1)
        for (; j + 16 <= rank; j += 16) project<1, 4>(x, pitch, a + j, count, rank, sums + j, sums_pitch);
    for (; j + 4 <= rank; j += 4) project<T, 1>(x, pitch, a + j, count, rank, sums + j, sums_pitch);
    for (; j < rank; ++j)
        for (int t = 0; t < T; ++t) {
            float sum[2] = {};
            for (int64_t k = 0; k < count; ++k) sum[k % 2] += x[t * pitch + k] * a[k * rank + j];
            sums[t * sums_pitch + j] = sum[0] + sum[1];
        }
}

// out[t][n] = y[t][n] + sum over j of h[t][j] * b[j][n] for T tokens and 4 W values of n.
template <int T, int W>
void expand(const float* y, const float* h, int64_t h_pitch, const float* b, int64_t rank, int64_t rows, float* out, int64_t pitch) {
    Four sum[T][W] = {};
    for (int64_t j = 0; j < rank; ++j)
        for (int w = 0; w < W; ++w) {
            const Four row = load(b + j * rows + 4 * w);
            for (int t = 0; t < T; ++t) sum[t][w] += h[t * h_pitch + j] * row;
        }
    for (int t = 0; t < T; ++t)
        for (int w = 0; w < W; ++w) {
            const Four all = load(y + t * pitch + 4 * w) + sum[t][w];
            std::memcpy(out + t * pitch + 4 * w, &all, sizeof all);
        }
}

template <int T>
void expand_all(const float* y, const float* h, int64_t h_pitch, const float* b, int64_t rank, int64_t rows, int64_t first,
                int64_t end, float* out, int64_t pitch) {
    constexpr int kWide = T == 1 ? 8 : 2;
    int64_t n = first;
    for (; n + 4 * kWide <= end; n += 4 * kWide) expand<T, kWide>(y + n, h, h_pitch, b + n, rank, rows, out + n, pitch);
    for (; n + 4 <= end; n += 4) expand<T, 1>(y + n, h, h_pitch, b + n, rank, rows, out + n, pitch);
    for (; n < end; ++n)
        for (int t = 0; t < T; ++t) {
            float sum = 0;
            for (int64_t j = 0; j < rank; ++j) sum += h[t * h_pitch + j] * b[j * rows + n];
            out[t * pitch + n] = y[t * pitch + n] + sum;
        }
}

thread_local Buffer t_low_rank;

struct LowRankUpdate {
    static constexpr const char *kName = "LowRankUpdate", *kProvider = nullptr;
    static constexpr size_t kInputs = 3, kOutputs = 1, kVariadic = 2;
    static constexpr int64_t kChunk = 512, kPiece = 1024, kTokens = 4;  // of columns, rows, and tokens that go together
    static int input_type(size_t) { return ort::kFloat; }
    static int output_type(size_t) { return ort::kFloat; }

    struct Pair {
        const float *a, *b;
        int64_t rank, rows, column, first;  // `column`: of the output; `first`: of the projections
    };

    Calls ort;
    int64_t columns = 0, gated = 0;
    std::vector<int64_t> rows;

    Status init(const void* info) {
        RETURN_IF_ERROR(ort.attribute(info, "columns", &columns));
        RETURN_IF_ERROR(ort.attribute(info, "gated", &gated));
        RETURN_IF_ERROR(list(ort, info, "rows", &rows));
        const bool right = columns > 0 && !rows.empty() && std::all_of(rows.begin(), rows.end(), [](int64_t n) { return n > 0; });
        return right ? nullptr : ort.error(ort::kInvalidArgument, "LowRankUpdate: columns and rows are from 1");
    }

    Status compute(ort::Context* context) const {
        Tensor y, x;
        RETURN_IF_ERROR(read_input(ort, context, 0, &y));
        RETURN_IF_ERROR(read_input(ort, context, 1, &x));
        size_t given = 0;
        RETURN_IF_ERROR(ort.input_count(context, &given));
        if (given != 2 + 2 * rows.size()) return ort.error(ort::kInvalidArgument, "LowRankUpdate: takes two matrices for each of its rows");
        std::vector<Pair> pairs;
        int64_t width = 0, ranks = 0;
        for (size_t i = 0; i < rows.size(); ++i) {
            Tensor a, b;
            RETURN_IF_ERROR(read_input(ort, context, 2 + 2 * i, &a));
            RETURN_IF_ERROR(read_input(ort, context, 3 + 2 * i, &b));
            if (a.rank != 2 || b.rank != 2 || a.dims[0] != columns || b.dims[1] != rows[i] || a.dims[1] != b.dims[0])
                return ort.error(ort::kInvalidArgument, "LowRankUpdate: matrices are not [columns, rank] and [rank, rows]");
            if (a.dims[1]) pairs.push_back({(const float*)a.data, (const float*)b.data, a.dims[1], rows[i], width, ranks});
            width += rows[i], ranks += a.dims[1];
        }
        const int64_t tokens = x.dims[0] * x.dims[1], pitch = gated ? 2 * columns : columns;
        if (x.rank != 3 || y.rank != 3 || x.dims[2] != pitch || y.dims[2] != width || y.dims[0] != x.dims[0] || y.dims[1] != x.dims[1])
            return ort.error(ort::kInvalidArgument, "LowRankUpdate: x and y are not [batch, tokens, columns] and [batch, tokens, rows]");
        ort::Value* value = nullptr;
        char* out = nullptr;
        RETURN_IF_ERROR(ort.output(context, 0, y.dims, 3, &value));
        RETURN_IF_ERROR(ort.data(value, (void**)&out));
        std::memcpy(out, y.data, tokens * width * 4);
        if (pairs.empty() || !tokens) return nullptr;

        const int64_t chunks = (columns + kChunk - 1) / kChunk;
        float* memory = (float*)t_low_rank.at_least(tokens * (ranks * (chunks + 1) + (gated ? columns : 0)) * 4);
        if (!memory) return ort.error(ort::kFail, "LowRankUpdate: Failed to allocate memory");
        float *sums = memory + tokens * ranks, *products = sums + tokens * chunks * ranks;
        const float* input = (const float*)x.data;
        if (gated) {
            RETURN_IF_ERROR(parallel(ort, context, tokens, [&](int64_t t) {
                gate_all((const float*)x.data + t * pitch, columns, products + t * columns);
            }));
            input = products;
        }
        const int64_t groups = (tokens + kTokens - 1) / kTokens;
        RETURN_IF_ERROR(parallel(ort, context, groups * chunks, [&](int64_t i) {
            const int64_t begin = i / chunks * kTokens, end = std::min(tokens, begin + kTokens);
            const int64_t chunk = i % chunks, first = chunk * kChunk, count = std::min(kChunk, columns - first);
            for (const Pair& p : pairs) {
                const float *from = input + begin * columns + first, *a = p.a + first * p.rank;
                float* to = sums + (begin * chunks + chunk) * ranks + p.first;
                if (end - begin == kTokens)
                    project_all<kTokens>(from, columns, a, count, p.rank, to, chunks * ranks);
                else
                    for (int64_t t = 0; t < end - begin; ++t)
                        project_all<1>(from + t * columns, columns, a, count, p.rank, to + t * chunks * ranks, 0);
            }
        }));
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t j = 0; j < ranks; ++j) {
                float sum = 0;
                for (int64_t c = 0; c < chunks; ++c) sum += sums[(t * chunks + c) * ranks + j];
                memory[t * ranks + j] = sum;
            }
        const int64_t pieces = (*std::max_element(rows.begin(), rows.end()) + kPiece - 1) / kPiece;
        return parallel(ort, context, groups * pieces, [&](int64_t i) {
            const int64_t begin = i / pieces * kTokens, stop = std::min(tokens, begin + kTokens), first = i % pieces * kPiece;
            for (const Pair& p : pairs) {
                const float *from = (const float*)y.data + begin * width + p.column, *h = memory + begin * ranks + p.first;
                float* to = (float*)out + begin * width + p.column;
                const int64_t end = std::min(first + kPiece, p.rows);
                if (stop - begin == kTokens)
                    expand_all<kTokens>(from, h, ranks, p.b, p.rank, p.rows, first, end, to, width);
                else
                    for (int64_t t = 0; t < stop - begin; ++t)
                        expand_all<1>(from + t * width, h + t * ranks, 0, p.b, p.rank, p.rows, first, end, to + t * width, 0);
            }
        });
    }
};
