#include "runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <utility>

#include "error.h"
#include "files.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace helium::core {
namespace {

#if defined(_WIN32)
constexpr const char* kDefaultName = "onnxruntime.dll";
#elif defined(__APPLE__)
constexpr const char* kDefaultName = "libonnxruntime.dylib";
#else
constexpr const char* kDefaultName = "libonnxruntime.so";
#endif
constexpr const char* kRemedy = "name ONNX Runtime's library: the option onnxruntime, or the environment's HELIUM_ONNXRUNTIME";

using GetApiBase = const OrtApiBase*(ORT_API_CALL*)();

// The library's one symbol. In an app on Apple's systems it may be linked in already: then it is the process' own.
GetApiBase find_base(const std::string& name) {
#if defined(_WIN32)
    const HMODULE library = LoadLibraryW(path_of(name).c_str());
    if (!library) throw Error(HELIUM_ERROR_RUNTIME, "ONNX Runtime cannot be opened", name + ": error " + std::to_string(GetLastError()), {}, kRemedy);
    const auto found = (GetApiBase)(void*)GetProcAddress(library, "OrtGetApiBase");
#else
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    const char* why = library ? nullptr : dlerror();
    const std::string problem = why ? why : "";  // the next call takes its memory
    const bool anywhere = !library && name == kDefaultName;  // one that was named is that one or none
    const auto found = library || anywhere ? (GetApiBase)dlsym(library ? library : RTLD_DEFAULT, "OrtGetApiBase") : nullptr;
    if (!library && !found) throw Error(HELIUM_ERROR_RUNTIME, "ONNX Runtime cannot be opened", problem, {}, kRemedy);
#endif
    if (!found) throw Error(HELIUM_ERROR_RUNTIME, "ONNX Runtime cannot be opened", name + " without OrtGetApiBase", "a build of ONNX Runtime", kRemedy);
    return found;
}

bool says(const char* message, const char* words) { return std::strstr(message, words) != nullptr; }

}  // namespace

const Runtime& Runtime::open(const std::string& name) {
    static std::mutex mutex;
    static auto& opened = *new std::map<std::string, const Runtime*>;  // never destroyed: threads may run when a process ends
    std::string wanted = name;
    if (wanted.empty())
        if (const char* from_environment = std::getenv("HELIUM_ONNXRUNTIME")) wanted = from_environment;
    if (wanted.empty()) wanted = kDefaultName;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto [place, is_new] = opened.try_emplace(wanted, nullptr);
    if (!is_new) return *place->second;
    try {
        place->second = new Runtime(wanted);
    } catch (...) {
        opened.erase(place);
        throw;
    }
    return *place->second;
}

Runtime::Runtime(const std::string& name) : base_(find_base(name)()) {
    api_ = base_->GetApi(kApiVersion);
    version_ = base_->GetVersionString();
    if (!api_) throw Error(HELIUM_ERROR_RUNTIME, "ONNX Runtime is too old", version_, "1.17 or newer", kRemedy);
    // Errors come as statuses; nothing is written to a standard error that an app may not have.
    check(api_->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "helium", &env_), "ONNX Runtime did not start");
    if (OrtStatus* status = api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &cpu_)) {
        api_->ReleaseEnv(env_);
        check(status, "ONNX Runtime did not start");
    }
}

void Runtime::check(OrtStatus* status, const char* what) const {
    if (!status) return;
    const auto answered = owned(status, api_->ReleaseStatus);
    const char* message = api_->GetErrorMessage(status);
    for (const char* words : {"bad_alloc", "bad allocation", "ailed to allocate", "annot allocate memory", "ut of memory"})
        if (says(message, words)) throw Error(HELIUM_ERROR_OUT_OF_MEMORY, what, message, {}, "close other programs, or take a smaller bundle");
    throw Error(HELIUM_ERROR_RUNTIME, what, message);
}

OrtPointer<OrtValue> tensor(const Runtime& ort, const void* data, size_t bytes, const int64_t* dims, size_t rank, const std::string& dtype) {
    static constexpr std::pair<std::string_view, ONNXTensorElementDataType> kTypes[] = {
        {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},     {"float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
        {"bfloat16", ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16}, {"int8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8},
        {"uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},       {"int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},
        {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},       {"bool", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL}};
    const auto type = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const auto& row) { return row.first == dtype; });
    if (type == std::end(kTypes)) throw Error(HELIUM_ERROR_BUNDLE, "the bundle has a dtype that this library does not know", in_quotes(dtype));
    OrtValue* value = nullptr;
    ort.check(ort->CreateTensorWithDataAsOrtValue(ort.cpu(), const_cast<void*>(data), bytes, dims, rank, type->second, &value), "a tensor cannot be made");
    return owned(value, ort->ReleaseValue);
}

}  // namespace helium::core
