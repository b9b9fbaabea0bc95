#include "engine.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <numeric>

#include "error.h"

// Of our kernels (helium_onnx/kernels/src), which are part of this library, or of no_kernels.cpp in their place.
extern "C" {
OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);
const char* helium_kernels_name();
}

namespace helium::core {
namespace {

const char* const kNames[2][2] = {{"prefill", "decode"}, {"native_prefill", "native_decode"}};

bool is_past(const TensorSpec& spec) { return spec.name.rfind("past_key_values.", 0) == 0; }

std::string present_of(const std::string& past) { return "present" + past.substr(std::strlen("past_key_values")); }

[[noreturn]] void other_graph(const Graph& graph, const std::string& found) {
    throw Error(HELIUM_ERROR_BUNDLE, "this library does not run " + graph.file, found, "a graph for CPUs, as cpu-int4 and cpu-fp32 have them",
                "export with such a recipe");
}

// Holds a graph of the manifest against what `Past::run` gives and takes.
void check_graph(const Graph& graph, const std::vector<TensorSpec>& past, int64_t vocab_size, const char* second_input) {
    bool ids = false, second = false, logits = false;
    size_t pasts = 0, presents = 0;
    for (const TensorSpec& spec : graph.inputs) {
        if (spec.name == "input_ids" && spec.dtype == "int64" && spec.dims.size() == 2 && spec.dims[1] < 0)
            ids = true;
        else if (spec.name == second_input && spec.dtype == "int64")
            second = true;
        else if (is_past(spec) && pasts < past.size() && spec.name == past[pasts].name && spec.dtype == past[pasts].dtype)
            ++pasts;
        else
            other_graph(graph, "the input " + in_quotes(spec.name) + " of " + spec.dtype);
    }
    for (const TensorSpec& spec : graph.outputs) {
        if (spec.name == "logits" && spec.dtype == "float32" && spec.dims.size() == 3 && (spec.dims[2] == vocab_size || spec.dims[2] < 0))
            logits = true;
        else if (presents < past.size() && spec.name == present_of(past[presents].name) && spec.dtype == past[presents].dtype)
            ++presents;
        else
            other_graph(graph, "the output " + in_quotes(spec.name) + " of " + spec.dtype);
    }
    if (!ids || !second || !logits || past.empty() || pasts != past.size() || presents != past.size())
        other_graph(graph, "not all of input_ids, " + std::string(second_input) + ", logits, keys and values");
}

}  // namespace

bool has_native_kernels() { return std::strcmp(helium_kernels_name(), "none") != 0; }

Engine::Engine(const Bundle& bundle, const Runtime& ort, bool native, const EngineOptions& options)
    : ort_(ort),
      native_(native),
      vocab_size_(bundle.vocab_size),
      context_length_(options.context_length),
      packed_(nullptr, {ort->ReleasePrepackedWeightsContainer}),
      sessions_{{nullptr, {ort->ReleaseSession}}, {nullptr, {ort->ReleaseSession}}} {
    if (bundle.operators != "onnxruntime")
        throw Error(HELIUM_ERROR_BUNDLE, "this library does not run the bundle's graphs", "recipe " + bundle.recipe + ", operators " + bundle.operators,
                    "a recipe for CPUs", "export with cpu-int4, cpu-int8 or cpu-fp32");
    for (const TensorSpec& spec : bundle.graph(kNames[native][kDecode]).inputs)
        if (is_past(spec)) {
            if (spec.dims.size() != 4 || spec.dims[1] < 1 || spec.dims[3] < 1 || spec.dims[1] > 1 << 20 || spec.dims[3] > 1 << 20)
                other_graph(bundle.graph(kNames[native][kDecode]), "the input " + in_quotes(spec.name));
            past_specs_.push_back(spec);
        }
    for (Phase phase : {kPrefill, kDecode})
        check_graph(bundle.graph(kNames[native][phase]), past_specs_, vocab_size_, native ? "past_lengths" : "attention_mask");
    weights_ = MappedFile(bundle.path(kWeightsFile));
    if (!native) {
        // Both sessions read the mapped weights, and share what kernels make of them.
        for (const StoredTensor& t : bundle.tensors)
            initializers_.push_back(tensor(ort, weights_.data() + t.offset, (size_t)t.nbytes, t.shape.data(), t.shape.size(), t.dtype));
        OrtPrepackedWeightsContainer* made = nullptr;
        ort.check(ort->CreatePrepackedWeightsContainer(&made), "ONNX Runtime has no place for packed weights");
        packed_.reset(made);
    }
    const auto load_both = [&] {
        for (Phase phase : {kPrefill, kDecode}) sessions_[phase] = load(bundle, phase, options);
    };
    try {
        load_both();
    } catch (const Error& error) {
        // ONNX Runtime before 1.29 cannot share packed weights of 4 and 8 bits: then each session has its own.
        if (!packed_ || !std::strstr(error.what(), "cache computed pre-packed weights")) throw;
        for (OrtPointer<OrtSession>& session : sessions_) session.reset();
        packed_.reset();
        load_both();
    }
}

OrtPointer<OrtSession> Engine::load(const Bundle& bundle, Phase phase, const EngineOptions& asked) {
    OrtSessionOptions* made = nullptr;
    ort_.check(ort_->CreateSessionOptions(&made), "ONNX Runtime gives no options");
    const auto options = owned(made, ort_->ReleaseSessionOptions);
    const auto set = [&](const char* key, const char* value) {
        ort_.check(ort_->AddSessionConfigEntry(options.get(), key, value), "ONNX Runtime refuses an option");
    };
    ort_.check(ort_->SetIntraOpNumThreads(options.get(), asked.threads), "ONNX Runtime refuses the number of threads");
    ort_.check(ort_->SetInterOpNumThreads(options.get(), 1), "ONNX Runtime refuses the number of threads");
    ort_.check(ort_->SetSessionLogSeverityLevel(options.get(), ORT_LOGGING_LEVEL_FATAL), "ONNX Runtime refuses an option");
    set("session.intra_op.allow_spinning", asked.spin ? "1" : "0");
    // Prefill's threads would go on spinning when it is done, on the cores that decode's threads then need.
    if (phase == kPrefill) set("session.force_spinning_stop", "1");
    const Graph& graph = bundle.graph(kNames[native_][phase]);
    const std::filesystem::path path = bundle.path(graph.file);
    const std::string failed = "ONNX Runtime " + ort_.version() + " cannot load " + graph.file;
    OrtSession* session = nullptr;
    if (native_) {
        static std::mutex registration;  // the operators make their domain when they are registered first
        {
            const std::lock_guard<std::mutex> lock(registration);
            ort_.check(RegisterCustomOps(options.get(), ort_.base()), "ONNX Runtime refuses our kernels");
        }
        ort_.check(ort_->CreateSession(ort_.env(), path.c_str(), options.get(), &session), failed.c_str());
    } else {
        for (size_t i = 0; i < initializers_.size(); ++i)
            ort_.check(ort_->AddInitializer(options.get(), bundle.tensors[i].name.c_str(), initializers_[i].get()), failed.c_str());
        ort_.check(packed_ ? ort_->CreateSessionWithPrepackedWeightsContainer(ort_.env(), path.c_str(), options.get(), packed_.get(), &session)
                           : ort_->CreateSession(ort_.env(), path.c_str(), options.get(), &session),
                   failed.c_str());
    }
    return owned(session, ort_->ReleaseSession);
}

Past::Past(std::shared_ptr<const Engine> engine, int64_t capacity) : engine_(std::move(engine)), capacity_(capacity) {
    const Runtime& ort = engine_->ort_;
    OrtRunOptions* run_options = nullptr;
    ort.check(ort->CreateRunOptions(&run_options), "ONNX Runtime gives no options");
    run_options_ = owned(run_options, ort->ReleaseRunOptions);
    for (const TensorSpec& spec : engine_->past_specs_) {
        const int64_t dims[4] = {1, spec.dims[1], capacity, spec.dims[3]};
        buffers_.emplace_back((size_t)(spec.dims[1] * capacity * spec.dims[3]) * bytes_of(spec.dtype));
        values_.push_back(tensor(ort, buffers_.back().data(), buffers_.back().size(), dims, 4, spec.dtype));
    }
    logits_.resize((size_t)engine_->vocab_size_);
    const int64_t logits_dims[3] = {1, 1, engine_->vocab_size_};
    logits_value_ = tensor(ort, logits_.data(), logits_.size() * sizeof(float), logits_dims, 3, "float32");
    ids_.resize((size_t)std::min(capacity, Engine::kChunk));
    if (engine_->native_) {
        const int64_t one = 1;
        lengths_value_ = tensor(ort, &length_, sizeof length_, &one, 1, "int64");
    } else {
        ones_.assign((size_t)capacity, 1);
    }
    for (Engine::Phase phase : {Engine::kPrefill, Engine::kDecode}) bind(calls_[phase], phase);
}

void Past::bind(Call& call, Engine::Phase phase) {
    const Runtime& ort = engine_->ort_;
    OrtIoBinding* made = nullptr;
    ort.check(ort->CreateIoBinding(engine_->sessions_[phase].get(), &made), "ONNX Runtime gives no binding");
    call.binding = owned(made, ort->ReleaseIoBinding);
    for (size_t i = 0; i < values_.size(); ++i) {
        const std::string& name = engine_->past_specs_[i].name;
        ort.check(ort->BindInput(made, name.c_str(), values_[i].get()), "keys and values cannot be bound");
        ort.check(ort->BindOutput(made, present_of(name).c_str(), values_[i].get()), "keys and values cannot be bound");
    }
    if (lengths_value_) ort.check(ort->BindInput(made, "past_lengths", lengths_value_.get()), "lengths cannot be bound");
    ort.check(ort->BindOutput(made, "logits", logits_value_.get()), "logits cannot be bound");
}

const float* Past::run(const int32_t* ids, int64_t count) {
    const Runtime& ort = engine_->ort_;
    const Engine::Phase phase = count == 1 && length_ > 0 ? Engine::kDecode : Engine::kPrefill;
    Call& call = calls_[phase];
    std::copy(ids, ids + count, ids_.begin());
    if (call.width != count) {
        call.width = 0;
        const int64_t dims[2] = {1, count};
        call.ids = tensor(ort, ids_.data(), (size_t)count * sizeof(int64_t), dims, 2, "int64");
        ort.check(ort->BindInput(call.binding.get(), "input_ids", call.ids.get()), "token ids cannot be bound");
        call.width = count;
    }
    OrtPointer<OrtValue> mask{nullptr, {nullptr}};
    if (!engine_->native_) {
        const int64_t dims[2] = {1, length_ + count};
        mask = tensor(ort, ones_.data(), (size_t)dims[1] * sizeof(int64_t), dims, 2, "int64");
        ort.check(ort->BindInput(call.binding.get(), "attention_mask", mask.get()), "the mask cannot be bound");
    }
    if (interrupted_.load()) return nullptr;
    OrtStatus* status = ort->RunWithBinding(engine_->sessions_[phase].get(), run_options_.get(), call.binding.get());
    if (interrupted_.load()) {
        if (status) ort->ReleaseStatus(status);
        return nullptr;
    }
    ort.check(status, "the model cannot be run");
    length_ += count;
    return logits_.data();
}

void Past::interrupt() {
    interrupted_.store(true);
    if (OrtStatus* status = engine_->ort_->RunOptionsSetTerminate(run_options_.get())) engine_->ort_->ReleaseStatus(status);
}

void Past::allow() {
    interrupted_.store(false);
    engine_->ort_.check(engine_->ort_->RunOptionsUnsetTerminate(run_options_.get()), "ONNX Runtime refuses to go on");
}

size_t Past::row_bytes(size_t index) const {
    const TensorSpec& spec = engine_->past_specs_[index];
    return (size_t)spec.dims[3] * bytes_of(spec.dtype);
}

int64_t Past::heads(size_t index) const { return engine_->past_specs_[index].dims[1]; }

}  // namespace helium::core
