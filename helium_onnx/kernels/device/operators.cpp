// The operators of the domain "helium_onnx.kernels" for ONNX Runtime's CUDA provider: one decode step of a few rows.
//
// DeviceEmbedding(input_ids int64 [batch, 1], table | quanta uint8, scales [, zeros uint8]) -> float32 [batch, 1, columns]
//     Attributes: bits (16, 8, 4), block_size, has_zeros, columns.
// DeviceLinear(x float32 [batch, 1, columns], [norm_weight], [residual float32 [batch, 1, rows]], then of each matrix:
//     weights | quanta uint8, scales [, zeros uint8]) -> float32 [batch, 1, sum of rows]: the products, one behind the other.
//     Attributes: columns; rows, bits, block_size and has_zeros, a list each with one value a matrix; norm: x is RMS-normed
//     first, with epsilon; residual: is added; gated: of two matrices silu(first product) * (second product).
// DeviceAttention(qkv float32 [batch, 1, (num_heads + 2 * kv_num_heads) * head_dim],
//     past_key, past_value [batch, kv_num_heads, capacity, head_dim], seqlens_k int32 [batch], cos, sin [positions,
//     head_dim / 2]) -> (float32 [batch, 1, num_heads * head_dim], present_key, present_value: the same buffers)
//     Attributes: num_heads, kv_num_heads, head_dim, interleaved.
// DeviceAttentionInt8(the same, then key_scales, value_scales float32 [1, kv_num_heads, 1, head_dim]): past and present are
//     int8 codes, each a number divided by its channel's scale. Operators of one name would share one list of inputs.
// DeviceArgMax(logits float32 [batch, 1, vocabulary]) -> int64 [batch, 1]; -1 where a logit is no number.
//
// Weights and tables are float16 or bfloat16, and so are keys and values that are no codes. The kernels themselves
// (kernels.cu) are compiled for the device at hand and given to helium_device_load before a session is made.
#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "../src/ort_operator.h"
#include "arguments.h"
#include "driver.h"

namespace helium {
namespace {

constexpr const char* kCuda = "CUDAExecutionProvider";

// The device whose kernels were loaded: one a process.
struct Device {
    const cuda::Driver* driver = nullptr;
    cuda::Context context = nullptr;
    std::vector<cuda::Module> modules;
    int processors = 0, shared_bytes = 0, depth = 0;
    bool overlaps = false;  // a kernel may begin before the one before it has ended
    std::mutex mutex;
    std::map<std::string, cuda::Function> functions;
} g_device;

Status failed(const Calls& ort, const std::string& text) { return ort.error(ort::kFail, ("helium_onnx: " + text).c_str()); }

Status find(const Calls& ort, const std::string& name, cuda::Function* out) {
    Device& d = g_device;
    std::lock_guard<std::mutex> lock(d.mutex);
    if (!d.driver) return failed(ort, "the device kernels were not loaded");
    cuda::Function& function = d.functions[name];
    if (!function) {
        for (cuda::Module module : d.modules)
            if (d.driver->function(&function, module, name.c_str()) == 0) break;
        if (!function) {
            d.functions.erase(name);
            return failed(ort, "there is no device kernel " + name);
        }
        if (name.compare(0, 6, "linear") == 0)
            if (cuda::Result result = d.driver->set_attribute(function, cuda::kMaxDynamicSharedSize, d.shared_bytes))
                return failed(ort, d.driver->what("cuFuncSetAttribute", result));
    }
    *out = function;
    return nullptr;
}

template <class Arguments>
Status launch(const Calls& ort, cuda::Function function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared_bytes,
              cuda::Stream stream, Arguments arguments) {
    cuda::LaunchAttribute attribute{};
    attribute.id = cuda::kProgrammaticStreamSerialization, attribute.value.flag = 1;
    cuda::LaunchConfig config{{x, y, z}, {threads, 1, 1}, shared_bytes, stream, &attribute, g_device.overlaps ? 1u : 0u};
    void* parameters[] = {&arguments};
    if (cuda::Result result = g_device.driver->launch(&config, function, parameters, nullptr))
        return failed(ort, g_device.driver->what("cuLaunchKernelEx", result));
    return nullptr;
}

// Memory on the device that a node keeps. What has become too small is kept as well: a captured graph may still use it.
struct Workspace {
    std::vector<cuda::Address> owned;
    cuda::Address address = 0;
    size_t size = 0;
    ~Workspace() {
        for (cuda::Address old : owned) g_device.driver->release(old);
    }
    Status at_least(const Calls& ort, size_t bytes) {  // zeros, the first time
        if (bytes <= size) return nullptr;
        cuda::Address made = 0;
        if (cuda::Result result = g_device.driver->allocate(&made, bytes)) return failed(ort, g_device.driver->what("cuMemAlloc", result));
        owned.push_back(made);
        if (cuda::Result result = g_device.driver->fill(made, 0, bytes)) return failed(ort, g_device.driver->what("cuMemset", result));
        address = made, size = bytes;
        return nullptr;
    }
};

Status write_output(const Calls& ort, ort::Context* context, size_t i, std::initializer_list<int64_t> dims, void** out) {
    ort::Value* value = nullptr;
    RETURN_IF_ERROR(ort.output(context, i, dims.begin(), dims.size(), &value));
    return ort.data(value, out);
}

Status type_name(const Calls& ort, const Tensor& tensor, const char** out) {
    if (tensor.type != ort::kFloat16 && tensor.type != ort::kBFloat16) return failed(ort, "weights are neither float16 nor bfloat16");
    *out = tensor.type == ort::kFloat16 ? "half" : "bfloat";
    return nullptr;
}

template <int bits>
StorageSizes sizes_of(int block, bool zeros) {
    switch (block) {
        case 32: return zeros ? StorageSizes::of<Storage<bits, 32, true>>() : StorageSizes::of<Storage<bits, 32, false>>();
        case 64: return zeros ? StorageSizes::of<Storage<bits, 64, true>>() : StorageSizes::of<Storage<bits, 64, false>>();
        case 128: return zeros ? StorageSizes::of<Storage<bits, 128, true>>() : StorageSizes::of<Storage<bits, 128, false>>();
        default: return zeros ? StorageSizes::of<Storage<bits, 256, true>>() : StorageSizes::of<Storage<bits, 256, false>>();
    }
}

// A matrix of a node: its tensors' places among the inputs, and how it is stored.
struct Matrix {
    int64_t rows = 0, bits = 0, block_size = 0, has_zeros = 0;
    size_t inputs() const { return bits == 16 ? 1 : 2 + has_zeros; }
    bool alike(const Matrix& other) const {
        return rows == other.rows && bits == other.bits && block_size == other.block_size && has_zeros == other.has_zeros;
    }
    std::string storage() const {
        return std::to_string(bits) + "_" + std::to_string(bits == 16 ? 0 : block_size) + "_" + std::to_string(bits == 16 ? 0 : has_zeros);
    }
    StorageSizes sizes() const {
        if (bits == 16) return StorageSizes::of<Storage<16, 0, false>>();
        return bits == 8 ? sizes_of<8>((int)block_size, has_zeros) : sizes_of<4>((int)block_size, has_zeros);
    }
    int row_bytes(int64_t columns) const {
        return (int)(bits == 16 ? 2 * columns : (columns + block_size - 1) / block_size * block_size * bits / 8);
    }
    Status check(const Calls& ort) const {
        const bool known = bits == 16 || ((bits == 8 || bits == 4) && (block_size == 32 || block_size == 64 || block_size == 128 || block_size == 256));
        return known && rows % kGroup == 0 ? nullptr : failed(ort, "no device kernel for a matrix of " + std::to_string(rows) + " rows, " + std::to_string(bits) + " bits, blocks of " + std::to_string(block_size));
    }
};

struct Linear {
    static constexpr const char *kName = "DeviceLinear", *kProvider = kCuda;
    static constexpr size_t kInputs = 2, kOutputs = 1;
    static int input_type(size_t i) { return i == 0 ? ort::kFloat : ort::kUndefined; }
    static int output_type(size_t) { return ort::kFloat; }
    static constexpr size_t kVariadic = 1;

    Calls ort;
    int64_t columns = 0, norm = 0, residual = 0, gated = 0;
    float epsilon = 0;
    std::vector<Matrix> matrices;

    Status init(const void* info) {
        std::vector<int64_t> rows, bits, blocks, zeros;
        RETURN_IF_ERROR(ort.attribute(info, "columns", &columns));
        RETURN_IF_ERROR(ort.attribute(info, "norm", &norm));
        RETURN_IF_ERROR(ort.attribute(info, "residual", &residual));
        RETURN_IF_ERROR(ort.attribute(info, "gated", &gated));
        RETURN_IF_ERROR(ort.attribute(info, "epsilon", &epsilon));
        RETURN_IF_ERROR(list(ort, info, "rows", &rows));
        RETURN_IF_ERROR(list(ort, info, "bits", &bits));
        RETURN_IF_ERROR(list(ort, info, "block_size", &blocks));
        RETURN_IF_ERROR(list(ort, info, "has_zeros", &zeros));
        if (rows.size() != bits.size() || rows.size() != blocks.size() || rows.size() != zeros.size() || columns % 8)
            return failed(ort, "DeviceLinear: attributes do not fit each other");
        for (size_t i = 0; i < rows.size(); ++i) {
            matrices.push_back({rows[i], bits[i], blocks[i], zeros[i]});
            RETURN_IF_ERROR(matrices[i].check(ort));
        }
        if (gated ? matrices.size() != 2 || matrices[0].rows != matrices[1].rows : residual && matrices.size() != 1)
            return failed(ort, "DeviceLinear: a gate takes two matrices of one size, a residual one");
        return nullptr;
    }

    Status compute(ort::Context* context) const {
        cuda::Stream stream = nullptr;
        RETURN_IF_ERROR(ort.stream(context, &stream));
        Tensor x, tensor;
        RETURN_IF_ERROR(read_input(ort, context, 0, &x));
        const int64_t tokens = x.dims[0] * x.dims[1];
        LinearArguments a{};
        a.columns = (int)columns, a.epsilon = epsilon;
        size_t at = 1;
        if (norm) {
            RETURN_IF_ERROR(read_input(ort, context, at++, &tensor));
            a.norm = (const u16*)tensor.data;
        }
        if (residual) {
            RETURN_IF_ERROR(read_input(ort, context, at++, &tensor));
            a.residual = (const float*)tensor.data;
        }
        int64_t all_rows = 0;
        for (const Matrix& matrix : matrices) all_rows += matrix.rows;
        if (gated) all_rows /= 2;
        void* y = nullptr;
        RETURN_IF_ERROR(write_output(ort, context, 0, {x.dims[0], x.dims[1], all_rows}, &y));
        a.stride = (int)all_rows;
        const bool both = gated && matrices[0].alike(matrices[1]);
        for (size_t i = 0; i < matrices.size(); i += both ? 2 : 1) {
            const Matrix& matrix = matrices[i];
            a.matrices = both ? 2 : 1, a.rows = (int)matrix.rows, a.row_bytes = matrix.row_bytes(columns);
            const char* type = nullptr;
            for (int m = 0; m < a.matrices; ++m) {
                RETURN_IF_ERROR(read_input(ort, context, at++, &tensor));
                a.data[m] = (const u8*)tensor.data;
                if (matrix.bits != 16) {
                    RETURN_IF_ERROR(read_input(ort, context, at++, &tensor));
                    a.scales[m] = (const u16*)tensor.data;
                }
                RETURN_IF_ERROR(type_name(ort, tensor, &type));
                a.zeros[m] = nullptr;
                if (matrix.bits != 16 && matrix.has_zeros) {
                    RETURN_IF_ERROR(read_input(ort, context, at++, &tensor));
                    a.zeros[m] = (const u8*)tensor.data;
                }
            }
            // Matrices of a gate that are stored otherwise go one after the other: the second finds the first's product.
            a.gate = gated && !both && i == 1 ? (const float*)y : nullptr;
            RETURN_IF_ERROR(launch_in_parts("linear_" + matrix.storage() + "_" + type, matrix, a, (const float*)x.data, (float*)y, tokens, stream));
            if (!gated) a.offset += a.rows;
        }
        return nullptr;
    }

    // As many tokens at once as find room in shared memory.
    Status launch_in_parts(const std::string& kernel, const Matrix& matrix, LinearArguments a, const float* x, float* y, int64_t tokens,
                           cuda::Stream stream) const {
        const StorageSizes sizes = matrix.sizes();
        const int blocks = arrange(a, sizes, g_device.processors);
        const float *residual_from = a.residual, *gate_from = a.gate;
        for (int64_t first = 0; first < tokens;) {
            a.tokens = (int)std::min<int64_t>(tokens - first, kMaxTokens);
            while (a.tokens > 1 && linear_shared_bytes(sizes, g_device.depth, a) > g_device.shared_bytes) --a.tokens;
            // More than half: of two blocks on one multiprocessor, of this kernel and the next, each gets half of the memory's
            // attention, and both are later (measured: 1.43 ms a token instead of 1.29).
            const int shared = std::max(linear_shared_bytes(sizes, g_device.depth, a), g_device.shared_bytes / 2 + 1024);
            if (shared > g_device.shared_bytes) return failed(ort, "a row of " + std::to_string(columns) + " columns finds no room in shared memory");
            cuda::Function function = nullptr;
            RETURN_IF_ERROR(find(ort, matrix.bits != 16 && a.tokens <= kFew ? kernel + "_few" : kernel, &function));
            a.x = x + first * columns, a.y = y + first * a.stride;
            a.residual = residual_from ? residual_from + first * a.rows : nullptr;
            a.gate = gate_from ? gate_from + first * a.rows : nullptr;
            RETURN_IF_ERROR(launch(ort, function, (unsigned)blocks, 1, 1, 32 * kWarps, (unsigned)shared, stream, a));
            first += a.tokens;
        }
        return nullptr;
    }
};

struct Embedding {
    static constexpr const char *kName = "DeviceEmbedding", *kProvider = kCuda;
    static constexpr size_t kInputs = 2, kOutputs = 1;
    static int input_type(size_t i) { return i == 0 ? ort::kInt64 : ort::kUndefined; }
    static int output_type(size_t) { return ort::kFloat; }
    static constexpr size_t kVariadic = 1;

    Calls ort;
    Matrix matrix;
    int64_t columns = 0;

    Status init(const void* info) {
        RETURN_IF_ERROR(ort.attribute(info, "bits", &matrix.bits));
        RETURN_IF_ERROR(ort.attribute(info, "block_size", &matrix.block_size));
        RETURN_IF_ERROR(ort.attribute(info, "has_zeros", &matrix.has_zeros));
        RETURN_IF_ERROR(ort.attribute(info, "columns", &columns));
        return matrix.check(ort);
    }

    Status compute(ort::Context* context) const {
        cuda::Stream stream = nullptr;
        RETURN_IF_ERROR(ort.stream(context, &stream));
        Tensor ids, table, scales, zeros;
        RETURN_IF_ERROR(read_input(ort, context, 0, &ids));
        RETURN_IF_ERROR(read_input(ort, context, 1, &table));
        if (matrix.bits != 16) RETURN_IF_ERROR(read_input(ort, context, 2, &scales));
        if (matrix.bits != 16 && matrix.has_zeros) RETURN_IF_ERROR(read_input(ort, context, 3, &zeros));
        const char* type = nullptr;
        RETURN_IF_ERROR(type_name(ort, matrix.bits == 16 ? table : scales, &type));
        EmbeddingArguments a{};
        void* x = nullptr;
        RETURN_IF_ERROR(write_output(ort, context, 0, {ids.dims[0], ids.dims[1], columns}, &x));
        a.ids = (const i64*)ids.data, a.data = (const u8*)table.data, a.scales = (const u16*)scales.data, a.zeros = (const u8*)zeros.data;
        // Gathered rows are not padded to whole blocks.
        a.x = (float*)x, a.columns = (int)columns, a.row_bytes = (int)(columns * matrix.bits / 8), a.vocabulary = (int)table.dims[0];
        while (matrix.bits != 16 && (1 << a.block_log2) < matrix.block_size) ++a.block_log2;
        cuda::Function function = nullptr;
        RETURN_IF_ERROR(find(ort, "embedding_" + std::to_string(matrix.bits) + "_" + type, &function));
        return launch(ort, function, (unsigned)(ids.dims[0] * ids.dims[1]), 1, 1, 256, 0, stream, a);
    }
};

template <bool brain, bool coded>
struct Attention {
    static constexpr const char *kName = coded ? "DeviceAttentionInt8" : "DeviceAttention", *kProvider = kCuda;
    static constexpr size_t kInputs = coded ? 8 : 6, kOutputs = 3;
    static constexpr int kType = brain ? ort::kBFloat16 : ort::kFloat16, kCache = coded ? ort::kInt8 : kType;
    static int input_type(size_t i) {
        constexpr int types[] = {ort::kFloat, kCache, kCache, ort::kInt32, kType, kType, ort::kFloat, ort::kFloat};
        return types[i];
    }
    static int output_type(size_t i) { return i == 0 ? ort::kFloat : kCache; }
    static constexpr size_t kVariadic = kNone;

    Calls ort;
    int64_t heads = 0, kv_heads = 0, size = 0, interleaved = 0;
    mutable Workspace parts, arrived;

    Status init(const void* info) {
        RETURN_IF_ERROR(ort.attribute(info, "num_heads", &heads));
        RETURN_IF_ERROR(ort.attribute(info, "kv_num_heads", &kv_heads));
        RETURN_IF_ERROR(ort.attribute(info, "head_dim", &size));
        RETURN_IF_ERROR(ort.attribute(info, "interleaved", &interleaved));
        const bool known = (size == 16 || size == 32 || size == 64 || size == 128) && kv_heads > 0 && heads % kv_heads == 0 && heads / kv_heads <= 4;
        return known ? nullptr : failed(ort, "no device kernel for heads of " + std::to_string(size) + " values, " + std::to_string(heads) + " on " + std::to_string(kv_heads));
    }

    Status compute(ort::Context* context) const {
        cuda::Stream stream = nullptr;
        RETURN_IF_ERROR(ort.stream(context, &stream));
        Tensor qkv, keys, values, last, cos, sin, key_scales, value_scales;
        Tensor* inputs[] = {&qkv, &keys, &values, &last, &cos, &sin, &key_scales, &value_scales};
        for (size_t i = 0; i < kInputs; ++i) RETURN_IF_ERROR(read_input(ort, context, i, inputs[i]));
        const int64_t batch = qkv.dims[0], capacity = keys.dims[2];
        if (qkv.dims[1] != 1) return failed(ort, std::string(kName) + " takes one new token of each row");
        void *output = nullptr, *present_keys = nullptr, *present_values = nullptr;
        RETURN_IF_ERROR(write_output(ort, context, 0, {batch, 1, heads * size}, &output));
        RETURN_IF_ERROR(write_output(ort, context, 1, {batch, kv_heads, capacity, size}, &present_keys));
        RETURN_IF_ERROR(write_output(ort, context, 2, {batch, kv_heads, capacity, size}, &present_values));
        if (present_keys != keys.data || present_values != values.data)
            return failed(ort, std::string(kName) + " writes keys and values in place: bind past and present to the same buffers");
        RETURN_IF_ERROR(parts.at_least(ort, (size_t)(batch * heads * kSplits * (size + 2)) * sizeof(float)));
        RETURN_IF_ERROR(arrived.at_least(ort, (size_t)(batch * kv_heads) * sizeof(unsigned)));
        AttentionArguments a{};
        a.qkv = (const float*)qkv.data, a.keys = keys.data, a.values = values.data, a.last = (const int*)last.data;
        a.cos = (const u16*)cos.data, a.sin = (const u16*)sin.data, a.output = (float*)output;
        a.parts = (float*)parts.address, a.arrived = (unsigned*)arrived.address;
        a.heads = (int)heads, a.kv_heads = (int)kv_heads, a.capacity = (int)capacity, a.interleaved = (int)interleaved;
        a.key_scales = (const float*)key_scales.data, a.value_scales = (const float*)value_scales.data;
        const std::string name = std::string("attention_") + (brain ? "bfloat" : "half") + "_" + std::to_string(size) + (heads == kv_heads ? "_1" : "_4");
        cuda::Function function = nullptr;
        RETURN_IF_ERROR(find(ort, coded ? name + "_int8" : name, &function));
        return launch(ort, function, kSplits, (unsigned)kv_heads, (unsigned)batch, kAttentionThreads, 0, stream, a);
    }
};

struct ArgMax {
    static constexpr const char *kName = "DeviceArgMax", *kProvider = kCuda;
    static constexpr size_t kInputs = 1, kOutputs = 1;
    static constexpr unsigned kBlocks = 64;
    static int input_type(size_t) { return ort::kFloat; }
    static int output_type(size_t) { return ort::kInt64; }
    static constexpr size_t kVariadic = kNone;

    Calls ort;
    mutable Workspace parts, arrived;

    Status init(const void*) { return nullptr; }

    Status compute(ort::Context* context) const {
        cuda::Stream stream = nullptr;
        RETURN_IF_ERROR(ort.stream(context, &stream));
        Tensor logits;
        RETURN_IF_ERROR(read_input(ort, context, 0, &logits));
        const int64_t tokens = logits.dims[0] * logits.dims[1];
        void* ids = nullptr;
        RETURN_IF_ERROR(write_output(ort, context, 0, {logits.dims[0], logits.dims[1]}, &ids));
        RETURN_IF_ERROR(parts.at_least(ort, (size_t)tokens * kBlocks * sizeof(u64)));
        RETURN_IF_ERROR(arrived.at_least(ort, (size_t)tokens * sizeof(unsigned)));
        ArgMaxArguments a{(const float*)logits.data, (i64*)ids, (u64*)parts.address, (unsigned*)arrived.address, (int)logits.dims[2]};
        cuda::Function function = nullptr;
        RETURN_IF_ERROR(find(ort, "argmax_float", &function));
        return launch(ort, function, kBlocks, (unsigned)tokens, 1, 256, 0, stream, a);
    }
};

}  // namespace
}  // namespace helium

#define HELIUM_EXPORT __attribute__((visibility("default")))

extern "C" {

// What ONNX Runtime looks for in a library of custom operators.
HELIUM_EXPORT ort::Status RegisterCustomOps(void* options, const ort::ApiBase* base) {
    using namespace helium;
    static const Registration<Linear> linear;
    static const Registration<Embedding> embedding;
    static const Registration<Attention<false, false>> attention_half;
    static const Registration<Attention<true, false>> attention_bfloat;
    static const Registration<Attention<false, true>> attention_half_int8;
    static const Registration<Attention<true, true>> attention_bfloat_int8;
    static const Registration<ArgMax> argmax;
    const Calls ort{base->get_api(ort::kApiVersion)};
    return register_operators(ort, options, {&linear, &embedding, &attention_half, &attention_bfloat, &attention_half_int8, &attention_bfloat_int8, &argmax});
}

// Make the kernels of `image` (a CUDA binary for the device) known to the operators. `processors`: multiprocessors;
// `shared_bytes`: what a block may ask for; `depth`: the HELIUM_DEPTH of the image; `overlaps`: compute capability 9.0 on.
// Returns null, or what went wrong, until the next call. An image is loaded once for each of its types.
HELIUM_EXPORT const char* helium_device_load(int device, const void* image, int processors, int shared_bytes, int depth, int overlaps) {
    static std::string problem;
    helium::Device& d = helium::g_device;
    std::lock_guard<std::mutex> lock(d.mutex);
    const cuda::Driver* driver = cuda::Driver::find();
    auto failed = [&](const char* doing, cuda::Result result) {
        problem = driver->what(doing, result);
        return problem.c_str();
    };
    if (!driver) return "libcuda.so.1 is missing or too old";
    if (cuda::Result result = driver->init(0)) return failed("cuInit", result);
    cuda::Context context = nullptr;
    if (cuda::Result result = driver->primary_context(&context, device)) return failed("cuDevicePrimaryCtxRetain", result);
    if (d.driver && d.context != context) return "the kernels are on another device already";
    if (cuda::Result result = driver->push(context)) return failed("cuCtxPushCurrent", result);
    cuda::Module module = nullptr;
    const cuda::Result loaded = driver->load(&module, image);
    driver->pop(&context);
    if (loaded) return failed("cuModuleLoadData", loaded);
    d.modules.push_back(module);
    d.driver = driver, d.context = context, d.processors = processors, d.shared_bytes = shared_bytes, d.depth = depth, d.overlaps = overlaps != 0;
    return nullptr;
}

}  // extern "C"
