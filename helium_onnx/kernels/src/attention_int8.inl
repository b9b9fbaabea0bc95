// CausalAttentionInt8, included in operators.cpp. Scores and the values' sums are products of quantized matrices, as
// QuantizedLinear's are: keys [tokens, head_dim] are the rows of one, and each kBlock tokens' values, transposed to
// [head_dim, kBlock], those of another. Every scale is of one token (that of a value is part of its share, which is
// rounded after), so that no token's result depends on what follows it, or on rows beside it.

struct CausalAttentionInt8 {
    static constexpr const char *kName = "CausalAttentionInt8", *kProvider = nullptr;
    static constexpr size_t kInputs = 3, kOutputs = 1, kVariadic = kNone;
    static int input_type(size_t i) { return i > 0 ? ort::kUndefined : ort::kFloat; }  // tables: float32 or float16
    static int output_type(size_t) { return ort::kFloat; }

    static constexpr int64_t kBlock = 128;  // keys whose shares have one scale
    static constexpr int64_t kPiece = 32;   // queries that go together

    Calls ort;
    int64_t heads = 0, groups = 0, size = 0, interleaved = 0;

    Status init(const void* info) { return attention_sizes(ort, info, kName, &heads, &groups, &size, &interleaved); }

    // What the pieces of a call share. Of a row and a head, resp. a key/value head, everything lies together.
    struct Shared {
        int8_t* queries;        // [batch, heads, tokens, padded]
        float *query_scales, *query_sums;  // [batch, heads, tokens, blocks]
        uint8_t* keys;          // [batch, groups, tokens, size]
        float* key_scales;      // [batch, groups, tokens, blocks]
        uint8_t* values;        // [batch, groups, value blocks, size, kBlock]
        float* value_scales;    // [batch, groups, tokens]
        float* ones;            // [size]
        int64_t block, blocks, padded, value_blocks;
    };

    Status compute(ort::Context* context) const {
        const Kernels& kernels = *g_kernels;
        Tensor x, cosines, sines;
        RETURN_IF_ERROR(read_input(ort, context, 0, &x));
        RETURN_IF_ERROR(read_input(ort, context, 1, &cosines));
        RETURN_IF_ERROR(read_input(ort, context, 2, &sines));
        const int64_t batch = x.dims[0], tokens = x.dims[1], width = (heads + 2 * groups) * size;
        RETURN_IF_ERROR(check_tables(ort, cosines, sines, size));
        if (x.rank != 3 || x.dims[2] != width) return ort.error(ort::kInvalidArgument, "CausalAttentionInt8: qkv has another shape");
        if (tokens > cosines.dims[0]) return ort.error(ort::kInvalidArgument, "CausalAttentionInt8: more tokens than the tables have");
        const int64_t dims[3] = {batch, tokens, heads * size};
        ort::Value* value = nullptr;
        Tensor y;
        RETURN_IF_ERROR(ort.output(context, 0, dims, 3, &value));
        RETURN_IF_ERROR(ort.data(value, (void**)&y.data));
        if (batch * tokens == 0) return nullptr;

        Shared s{};
        s.block = 16;
        while (s.block < 64 && size % (2 * s.block) == 0) s.block *= 2;
        s.blocks = size / s.block, s.padded = (size + 63) / 64 * 64, s.value_blocks = (tokens + kBlock - 1) / kBlock;
        const int64_t queries = batch * heads * tokens, keys = batch * groups * tokens, values = batch * groups * s.value_blocks * size;
        // Tiles are read in whole 64 columns: so many bytes behind the last row are readable.
        char* memory = t_query.at_least(queries * (s.padded + 8 * s.blocks) + keys * (size + 4 * s.blocks) + values * kBlock + batch * groups * tokens * 4 + size * 4 + 9 * 128);
        if (!memory) return ort.error(ort::kFail, "CausalAttentionInt8: Failed to allocate memory");
        const auto take = [&](int64_t bytes) {
            char* taken = memory;
            memory += (bytes + 127) / 64 * 64;
            return taken;
        };
        s.queries = (int8_t*)take(queries * s.padded);
        s.query_scales = (float*)take(queries * s.blocks * 4);
        s.query_sums = (float*)take(queries * s.blocks * 4);
        s.keys = (uint8_t*)take(keys * size);
        s.key_scales = (float*)take(keys * s.blocks * 4);
        s.values = (uint8_t*)take(values * kBlock);
        s.value_scales = (float*)take(batch * groups * tokens * 4);
        s.ones = (float*)take(size * 4);
        std::fill(s.ones, s.ones + size, 1.0f);

        RETURN_IF_ERROR(parallel(ort, context, batch * groups * s.value_blocks, [&](int64_t i) {
            const int64_t p = i % s.value_blocks, group = i / s.value_blocks % groups, b = i / s.value_blocks / groups;
            quantize(kernels, s, (const float*)x.data + b * tokens * width, cosines, sines, b, group, tokens, p * kBlock);
        }));
        const int64_t pieces = (tokens + kPiece - 1) / kPiece;
        const int64_t bytes = attend_bytes(kernels, s, tokens);
        std::atomic<bool> failed{false};
        RETURN_IF_ERROR(parallel(ort, context, batch * heads * pieces, [&](int64_t i) {
            const int64_t p = i % pieces, head = i / pieces % heads, b = i / pieces / heads;
            char* scratch = t_scratch.at_least(bytes);
            if (!scratch) {
                failed = true;
                return;
            }
            attend(kernels, s, b, head, tokens, p * kPiece, std::min(tokens, (p + 1) * kPiece), scratch,
                   (float*)y.data + b * tokens * heads * size + head * size);
        }));
        return failed ? ort.error(ort::kFail, "CausalAttentionInt8: Failed to allocate memory") : nullptr;
    }

    // Queries, keys and values of one key/value head for the kBlock tokens from `begin` on.
    void quantize(const Kernels& kernels, const Shared& s, const float* x, const Tensor& cosines, const Tensor& sines, int64_t b,
                  int64_t group, int64_t tokens, int64_t begin) const {
        const int64_t width = (heads + 2 * groups) * size, ratio = heads / groups, end = std::min(tokens, begin + kBlock);
        const int64_t kv = b * groups + group;
        uint8_t* values = s.values + (kv * s.value_blocks + begin / kBlock) * size * kBlock;
        std::memset(values, 128, size * kBlock);
        float turned[1024], copies[2][512], unused[64];
        int8_t quanta[1024];
        for (int64_t t = begin; t < end; ++t) {
            const float *row = x + t * width, *c = angles(cosines, t, size, copies[0]), *d = angles(sines, t, size, copies[1]);
            for (int64_t h = group * ratio; h < (group + 1) * ratio; ++h) {
                kernels.rotate(row + h * size, c, d, size, interleaved, turned);
                const int64_t at = (b * heads + h) * tokens + t;
                kernels.quantize_row(turned, size, s.block, false, false, s.queries + at * s.padded, s.query_scales + at * s.blocks,
                                     s.query_sums + at * s.blocks);
            }
            kernels.rotate(row + (heads + group) * size, c, d, size, interleaved, turned);
            const int64_t at = kv * tokens + t;
            kernels.quantize_row(turned, size, s.block, false, false, quanta, s.key_scales + at * s.blocks, unused);
            for (int64_t i = 0; i < size; ++i) s.keys[at * size + i] = (uint8_t)(quanta[i] + 128);
            kernels.quantize_row(row + (heads + groups + group) * size, size, size, false, false, quanta, s.value_scales + at, unused);
            for (int64_t i = 0; i < size; ++i) values[i * kBlock + t - begin] = (uint8_t)(quanta[i] + 128);
        }
    }

    struct Scratch {
        float *scores, *shares_scales, *shares_sums, *part;
        int8_t* shares;
        char* tiles;
        int64_t bytes;
    };

    Scratch scratch_of(const Kernels& kernels, const Shared& s, int64_t tokens, char* memory) const {
        const int64_t padded = s.value_blocks * kBlock;
        const Matrix keys = key_matrix(s, 0, tokens), values = value_matrix(s, 0);
        int64_t bytes = 0;
        const auto take = [&](int64_t n) {
            char* taken = memory + bytes;
            bytes += (n + 63) / 64 * 64;
            return taken;
        };
        Scratch found{};
        found.scores = (float*)take(kPiece * padded * 4);
        found.shares = (int8_t*)take(kPiece * padded);
        found.shares_scales = (float*)take(kPiece * s.value_blocks * 4);
        found.shares_sums = (float*)take(kPiece * s.value_blocks * 4);
        found.part = (float*)take(kPiece * size * 4);
        found.tiles = take(std::max(kernels.scratch_bytes(keys), kernels.scratch_bytes(values)));
        found.bytes = bytes;
        return found;
    }

    int64_t attend_bytes(const Kernels& kernels, const Shared& s, int64_t tokens) const {
        return scratch_of(kernels, s, tokens, nullptr).bytes;
    }

    // The first `n` keys of a row's key/value head.
    Matrix key_matrix(const Shared& s, int64_t first, int64_t n) const {
        return {s.keys + first * size, s.key_scales + first * s.blocks, nullptr, n, size, s.block, 8, false};
    }

    Matrix value_matrix(const Shared& s, int64_t block) const {
        return {s.values + block * size * kBlock, s.ones, nullptr, size, kBlock, kBlock, 8, false};
    }

    // One head of one row, for the queries [begin, end); `output` is that of token 0.
    void attend(const Kernels& kernels, const Shared& s, int64_t b, int64_t head, int64_t tokens, int64_t begin, int64_t end,
                char* memory, float* output) const {
        const int64_t kv = b * groups + head / (heads / groups), count = end - begin, blocks = (end + kBlock - 1) / kBlock;
        const int64_t pitch = blocks * kBlock, output_pitch = heads * size;
        const float scale = 1.0f / std::sqrt((float)size);
        const Scratch scratch = scratch_of(kernels, s, tokens, memory);
        const Matrix keys = key_matrix(s, kv * tokens, end);
        const int64_t first = (b * heads + head) * tokens + begin;
        kernels.multiply(keys, {s.queries + first * s.padded, s.query_scales + first * s.blocks, s.query_sums + first * s.blocks, count, s.padded, s.blocks},
                         0, end, end, scratch.scores, pitch, scratch.tiles);
        float inverse[kPiece];
        for (int64_t t = 0; t < count; ++t) {
            float* row = scratch.scores + t * pitch;
            const int64_t n = begin + t + 1;
            inverse[t] = kernels.softmax(row, n, scale);
            const float* scales = s.value_scales + kv * tokens;
            for (int64_t j = 0; j < n; ++j) row[j] *= scales[j];
            std::fill(row + (n + 15) / 16 * 16, row + pitch, 0.0f);
            for (int64_t k = 0; k < blocks; ++k) {  // of a block all queries lie together
                const int64_t at = k * count + t;
                kernels.quantize_row(row + k * kBlock, kBlock, kBlock, false, false, scratch.shares + at * kBlock, scratch.shares_scales + at,
                                     scratch.shares_sums + at);
            }
        }
        for (int64_t k = 0; k < blocks; ++k) {
            const int64_t at = k * count;
            const Activations shares{scratch.shares + at * kBlock, scratch.shares_scales + at, scratch.shares_sums + at, count, kBlock, 1};
            kernels.multiply(value_matrix(s, kv * s.value_blocks + k), shares, 0, size, size, scratch.part, size, scratch.tiles);
            for (int64_t t = 0; t < count; ++t) {
                float *out = output + (begin + t) * output_pitch, *part = scratch.part + t * size;
                const float share = k + 1 == blocks ? inverse[t] : 1.0f;
                for (int64_t d = 0; d < size; ++d) out[d] = ((k ? out[d] : 0.0f) + part[d]) * share;
            }
        }
    }
};
