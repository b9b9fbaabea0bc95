// ONNX Runtime, opened at run time: any build from API version 17 on.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace helium::core {

// One library, opened once in a process and never closed: its threads outlive any handle.
class Runtime {
   public:
    // `name` is a path or a name for the loader; empty: $HELIUM_ONNXRUNTIME, else the platform's. Throws RUNTIME.
    static const Runtime& open(const std::string& name);

    // The oldest table that has all that is called here, so that old libraries serve too: callers compare structs of
    // later versions with `version()`.
    static constexpr uint32_t kApiVersion = 17;

    const OrtApi* operator->() const { return api_; }
    const OrtApiBase* base() const { return base_; }
    const OrtEnv* env() const { return env_; }
    const OrtMemoryInfo* cpu() const { return cpu_; }
    const std::string& version() const { return version_; }  // "1.31.1"

    // Throws what a call of the table answered, unless it went well. `what` begins the text of errors.
    void check(OrtStatus* status, const char* what) const;

   private:
    explicit Runtime(const std::string& name);
    const OrtApiBase* base_ = nullptr;
    const OrtApi* api_ = nullptr;
    OrtEnv* env_ = nullptr;
    OrtMemoryInfo* cpu_ = nullptr;
    std::string version_;
};

// An object of ONNX Runtime that frees itself.
template <class T>
struct OrtDeleter {
    void (*release)(T*);
    void operator()(T* object) const { release(object); }
};
template <class T>
using OrtPointer = std::unique_ptr<T, OrtDeleter<T>>;

template <class T>
OrtPointer<T> owned(T* object, void (*release)(T*)) {
    return OrtPointer<T>(object, OrtDeleter<T>{release});
}

// A tensor over memory of the caller's. `type` is a manifest's dtype.
OrtPointer<OrtValue> tensor(const Runtime& ort, const void* data, size_t bytes, const int64_t* dims, size_t rank, const std::string& dtype);

}  // namespace helium::core
