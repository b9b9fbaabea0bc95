#include "model.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "device.h"
#include "error.h"

namespace helium::core {
namespace {

constexpr size_t kLargestTokenizer = 256u << 20;
// Of a process with ONNX Runtime and a tokenizer of 48000 pieces, before any weight (measured: 45 MB).
constexpr int64_t kProcess = 48 << 20;

void check_options(const helium_model_options& options) {
    if (options.threads < 0 || options.threads > 1024)
        throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "the number of threads is out of range", std::to_string(options.threads), "1 to 1024, or 0");
    if (options.memory_limit < HELIUM_MEMORY_AVAILABLE)
        throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "the memory limit is negative", std::to_string(options.memory_limit), "bytes, 0 or HELIUM_MEMORY_AVAILABLE (-1)");
    if (const int kernels = number_of(options.kernels); kernels < HELIUM_KERNELS_AUTO || kernels > HELIUM_KERNELS_ONNXRUNTIME)
        throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "the kernels are none that there are", std::to_string(kernels), "0, 1 or 2");
}

bool wants_native(const Bundle& bundle, helium_kernels kernels) {
    const bool has_graphs = bundle.has_graph("native_prefill") && bundle.has_graph("native_decode");
    if (kernels == HELIUM_KERNELS_NATIVE && !has_graphs)
        throw Error(HELIUM_ERROR_BUNDLE, "the bundle has no graphs for our kernels", "recipe " + bundle.recipe, "a recipe of 4 or 8 bits for CPUs, as cpu-int4",
                    "or leave the kernels to the library");
    if (kernels == HELIUM_KERNELS_NATIVE && !has_native_kernels())
        throw Error(HELIUM_ERROR_BUNDLE, "our kernels do not run here", "a processor without AVX2 or AVX-512, or a build without kernels", {},
                    "leave the kernels to the library");
    return kernels == HELIUM_KERNELS_NATIVE || (kernels == HELIUM_KERNELS_AUTO && has_graphs && has_native_kernels());
}

int64_t context_length(const Bundle& bundle, const helium_model_options& options) {
    if (options.context_length == 0) return bundle.context_length;
    if (options.context_length < 2 || options.context_length > bundle.context_length)
        throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "the context length is out of range", std::to_string(options.context_length),
                    "2 to " + std::to_string(bundle.context_length) + ", the model's limit");
    return options.context_length;
}

helium_memory_plan plan_of(const Bundle& bundle, const helium_model_options& options) {
    const bool native = wants_native(bundle, options.kernels);
    const int64_t context = context_length(bundle, options);
    helium_memory_plan plan{};
    plan.struct_size = sizeof plan;
    plan.weights = std::max<int64_t>(0, bundle.file_size(kWeightsFile));
    if (!native)
        for (const StoredTensor& tensor : bundle.tensors)  // kernels copy matrices, not the table of embeddings
            if (tensor.name.find("embed_tokens") == std::string::npos) plan.private_weights += tensor.nbytes;
    for (const TensorSpec& spec : bundle.graph(native ? "native_decode" : "decode").inputs)
        if (spec.name.rfind("past_key_values.", 0) == 0 && spec.dims.size() == 4)
            plan.cache += std::max<int64_t>(0, spec.dims[1]) * std::max<int64_t>(0, spec.dims[3]) * context * (int64_t)bytes_of(spec.dtype);
    const int64_t chunk = std::min(context, Engine::kChunk);
    // Of a prefill: the widest layer's activations twice, and the last position's logits; ONNX Runtime's attention keeps
    // all scores of a chunk, ours a few rows.
    plan.working = kProcess + chunk * 4 * 2 * (2 * bundle.intermediate_size + 4 * bundle.hidden_size) + bundle.vocab_size * 4;
    if (!native) plan.working += bundle.num_attention_heads * chunk * context * 4;
    plan.total = plan.weights + plan.private_weights + plan.cache + plan.working;
    plan.available = available_memory();
    return plan;
}

std::string megabytes(int64_t bytes) { return std::to_string((bytes + 999999) / 1000000) + " MB"; }

void check_limit(const helium_memory_plan& plan, int64_t limit) {
    int64_t charged = plan.total;
    if (limit == HELIUM_MEMORY_AVAILABLE) {
        limit = plan.available < 0 ? 0 : plan.available;
        if (!charges_mapped_files()) charged -= plan.weights;
    }
    if (limit > 0 && charged > limit)
        throw Error(HELIUM_ERROR_OUT_OF_MEMORY, "the bundle needs more memory than it may have",
                    megabytes(plan.total) + " (weights " + megabytes(plan.weights + plan.private_weights) + ", keys and values " + megabytes(plan.cache) +
                        ", working " + megabytes(plan.working) + ")",
                    "at most " + megabytes(limit), "ask for a shorter context, or take a smaller bundle");
}

}  // namespace

std::shared_ptr<const Model> Model::load(const std::string& path, const helium_model_options& options) {
    const auto started = std::chrono::steady_clock::now();
    check_options(options);
    const Bundle bundle = Bundle::open(path_of(path));
    EngineOptions engine;
    engine.threads = options.threads ? options.threads : default_threads();
    engine.spin = options.spin != 0;
    engine.context_length = context_length(bundle, options);
    if (options.memory_limit != 0) check_limit(plan_of(bundle, options), options.memory_limit);
    bundle.check_digests(options.check_digests != 0);

    auto model = std::make_shared<Model>();
    model->bundle_sha256_ = bundle.sha256;
    model->recipe_ = bundle.recipe;
    model->weights_bytes_ = bundle.file_size(kWeightsFile);
    model->threads_ = engine.threads;
    model->tokenizer_ = std::make_unique<Tokenizer>(read_file(bundle.path("tokenizer.json"), kLargestTokenizer, HELIUM_ERROR_TOKENIZER), bundle.vocab_size,
                                                    bundle.bos_token_id, bundle.eos_token_ids);
    const bool native = wants_native(bundle, options.kernels);
    const Runtime& runtime = Runtime::open(options.onnxruntime ? options.onnxruntime : "");
    model->onnxruntime_ = runtime.version();
    model->engine_ = std::make_shared<Engine>(bundle, runtime, native, engine);
    model->load_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    return model;
}

void Model::describe(helium_model_info& info) const {
    info.vocab_size = engine_->vocab_size();
    info.context_length = engine_->context_length();
    info.threads = threads_;
    info.kernels = engine_->native() ? HELIUM_KERNELS_NATIVE : HELIUM_KERNELS_ONNXRUNTIME;
    const auto copy = [](auto& to, const std::string& from) {
        const size_t length = std::min(from.size(), sizeof to - 1);
        std::memcpy(to, from.data(), length);
        to[length] = 0;
    };
    copy(info.bundle, bundle_sha256_);
    copy(info.recipe, recipe_);
    copy(info.onnxruntime, onnxruntime_);
    info.load_seconds = load_seconds_;
    info.weights_bytes = weights_bytes_;
    info.weights_resident = engine_->weights_resident();
    info.peak_memory = peak_memory();
}

helium_memory_plan plan_memory(const std::string& path, const helium_model_options& options) {
    check_options(options);
    return plan_of(Bundle::open(path_of(path)), options);
}

}  // namespace helium::core
