// A conversation in a file: safetensors (huggingface.co/docs/safetensors) whose metadata has a version and a SHA-256.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "engine.h"

namespace helium::core {

struct SavedState {
    std::string bundle, kernels;
    std::vector<int32_t> ids;
    bool sampler_begun = false;
    uint64_t seed = 0, sampler = 0;
};

// What a file must be of; the specs are those of `Engine::past_specs`.
struct SavedOf {
    const std::vector<TensorSpec>& past_specs;
    int64_t vocab_size;
    std::string bundle, kernels;
};

// Throws IO, OUT_OF_MEMORY.
void save_conversation(const std::filesystem::path& path, const SavedState& state, Past& past);

// A file's content, checked whole; the bytes must outlive it. Throws SESSION_FILE, FORMAT_VERSION.
class SavedConversation {
   public:
    SavedConversation(std::string_view bytes, const std::string& name, const SavedOf& of);

    SavedState state;
    int64_t held = 0;  // tokens with keys and values; at most as many as there are ids

    void fill(Past& past) const;  // which has room for `held`

   private:
    std::vector<const char*> tensors_;
};

}  // namespace helium::core
