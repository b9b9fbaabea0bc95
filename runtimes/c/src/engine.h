// What computes: a bundle's prefill and decode graphs over one copy of the weights, and the keys and values of a text.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bundle.h"
#include "files.h"
#include "runtime.h"

namespace helium::core {

class Past;

struct EngineOptions {
    int threads = 1;
    bool spin = true;
    int64_t context_length = 0;
};

// Immutable once made: any number of pasts may run at the same time.
class Engine {
   public:
    // `native`: over our own kernels, else ONNX Runtime's. Throws BUNDLE, RUNTIME, IO, OUT_OF_MEMORY.
    Engine(const Bundle& bundle, const Runtime& ort, bool native, const EngineOptions& options);

    // The most tokens that a prefill takes at once.
    static constexpr int64_t kChunk = 512;

    int64_t vocab_size() const { return vocab_size_; }
    int64_t context_length() const { return context_length_; }
    bool native() const { return native_; }
    const std::vector<TensorSpec>& past_specs() const { return past_specs_; }  // of keys and values, layer by layer
    int64_t weights_resident() const { return weights_.resident(); }

   private:
    friend class Past;
    enum Phase { kPrefill, kDecode };
    OrtPointer<OrtSession> load(const Bundle& bundle, Phase phase, const EngineOptions& options);

    const Runtime& ort_;
    bool native_;
    int64_t vocab_size_, context_length_;
    std::vector<TensorSpec> past_specs_;
    MappedFile weights_;
    // What sessions read must outlive them: so these stand before.
    std::vector<OrtPointer<OrtValue>> initializers_;
    OrtPointer<OrtPrepackedWeightsContainer> packed_;
    OrtPointer<OrtSession> sessions_[2];
};

// Keys and values of one text, in buffers of the whole context that the graphs write in place. One thread at a time, but
// for `interrupt`.
class Past {
   public:
    Past(std::shared_ptr<const Engine> engine, int64_t capacity);

    const Engine& engine() const { return *engine_; }
    int64_t capacity() const { return capacity_; }
    int64_t length() const { return length_; }
    void truncate(int64_t length) { length_ = length; }  // forget what is behind; at most what there is

    // Appends 1 to kChunk ids; the logits [vocab_size] of the last are valid until the next call. Null: interrupted, and
    // nothing was appended.
    const float* run(const int32_t* ids, int64_t count);

    void interrupt();  // any thread: the call that runs, if one does, and all until `allow`
    void allow();

    // What the first `tokens` left in layer tensor `index`: of head `h` a run of rows. For saved conversations.
    size_t row_bytes(size_t index) const;  // of one token and head
    int64_t heads(size_t index) const;
    char* slots(size_t index, int64_t head) { return buffers_[index].data() + (size_t)(head * capacity_) * row_bytes(index); }
    void restored(int64_t tokens) { length_ = tokens; }

   private:
    struct Call {
        OrtPointer<OrtIoBinding> binding{nullptr, {nullptr}};
        OrtPointer<OrtValue> ids{nullptr, {nullptr}};
        int64_t width = 0;
    };
    void bind(Call& call, Engine::Phase phase);

    std::shared_ptr<const Engine> engine_;
    int64_t capacity_, length_ = 0;
    std::vector<ZeroedMemory> buffers_;
    std::vector<int64_t> ids_, ones_;
    std::vector<float> logits_;
    std::vector<OrtPointer<OrtValue>> values_;
    OrtPointer<OrtValue> lengths_value_{nullptr, {nullptr}}, logits_value_{nullptr, {nullptr}};
    OrtPointer<OrtRunOptions> run_options_{nullptr, {nullptr}};
    Call calls_[2];
    std::atomic<bool> interrupted_{false};
};

// Whether this processor has vectors that our own kernels are written for.
bool has_native_kernels();


}  // namespace helium::core
