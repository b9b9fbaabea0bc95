// A loaded bundle.
#pragma once

#include <memory>
#include <string>

#include "bundle.h"
#include "engine.h"
#include "tokenizer.h"

namespace helium::core {

// Immutable once loaded.
class Model {
   public:
    // `options` has all fields. Throws as helium_model_open says.
    static std::shared_ptr<const Model> load(const std::string& path, const helium_model_options& options);

    const Tokenizer& tokenizer() const { return *tokenizer_; }
    const std::shared_ptr<const Engine>& engine() const { return engine_; }
    const std::string& bundle_sha256() const { return bundle_sha256_; }
    const char* kernels_name() const { return engine_->native() ? "native" : "onnxruntime"; }
    void describe(helium_model_info& info) const;

   private:
    std::string bundle_sha256_, recipe_, onnxruntime_;
    int64_t weights_bytes_ = 0;
    int threads_ = 0;
    double load_seconds_ = 0;
    std::unique_ptr<const Tokenizer> tokenizer_;
    std::shared_ptr<const Engine> engine_;
};

helium_memory_plan plan_memory(const std::string& path, const helium_model_options& options);

}  // namespace helium::core
