// The few functions of the CUDA driver that launching a kernel takes, from libcuda.so.1 itself: no header and no library of
// CUDA is needed to build, and a machine without a GPU can load what was built.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <string>

namespace cuda {

using Result = int;  // 0: success
using Context = void*;
using Module = void*;
using Function = void*;
using Stream = void*;
using Address = unsigned long long;

// CUlaunchConfig and CUlaunchAttribute of CUDA 12 and 13.
struct LaunchAttribute {
    int id;
    char padding[4];
    union {
        char bytes[64];
        int flag;
    } value;
};
struct LaunchConfig {
    unsigned grid[3], block[3], shared_bytes;
    Stream stream;
    LaunchAttribute* attributes;
    unsigned attribute_count;
};
constexpr int kProgrammaticStreamSerialization = 6, kMaxDynamicSharedSize = 8;

struct Driver {
    Result (*init)(unsigned) = nullptr;
    Result (*error_name)(Result, const char**) = nullptr;
    Result (*primary_context)(Context*, int) = nullptr;
    Result (*push)(Context) = nullptr;
    Result (*pop)(Context*) = nullptr;
    Result (*load)(Module*, const void*) = nullptr;
    Result (*function)(Function*, Module, const char*) = nullptr;
    Result (*set_attribute)(Function, int, int) = nullptr;
    Result (*launch)(const LaunchConfig*, Function, void**, void**) = nullptr;
    Result (*allocate)(Address*, size_t) = nullptr;
    Result (*release)(Address) = nullptr;
    Result (*fill)(Address, unsigned char, size_t) = nullptr;

    // Null where there is no driver, or one that is too old.
    static const Driver* find() {
        static Driver driver;
        static const bool found = [] {
            void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
            if (!library) return false;
            auto take = [&](auto& function, const char* name) {
                return (function = (std::decay_t<decltype(function)>)dlsym(library, name)) != nullptr;
            };
            return take(driver.init, "cuInit") && take(driver.error_name, "cuGetErrorName") &&
                   take(driver.primary_context, "cuDevicePrimaryCtxRetain") && take(driver.push, "cuCtxPushCurrent_v2") &&
                   take(driver.pop, "cuCtxPopCurrent_v2") && take(driver.load, "cuModuleLoadData") &&
                   take(driver.function, "cuModuleGetFunction") && take(driver.set_attribute, "cuFuncSetAttribute") &&
                   take(driver.launch, "cuLaunchKernelEx") && take(driver.allocate, "cuMemAlloc_v2") &&
                   take(driver.release, "cuMemFree_v2") && take(driver.fill, "cuMemsetD8_v2");
        }();
        return found ? &driver : nullptr;
    }

    std::string what(const char* doing, Result result) const {
        const char* name = nullptr;
        error_name(result, &name);
        return std::string(doing) + ": " + (name ? name : "CUDA error " + std::to_string(result));
    }
};

}  // namespace cuda
