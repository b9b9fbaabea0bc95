// The part of ONNX Runtime's C interface that custom operators need, by its stable layout: a table of functions that
// only ever grows at its end (https://onnxruntime.ai/docs/api/c). No package of ours or of pip carries the header.
// The positions are those of API version 17, the first with ParallelFor; every later one keeps them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t kApiVersion = 17;

enum ElementType { kUndefined = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kFloat16 = 10, kBFloat16 = 16 };
enum Characteristic { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum ErrorCode { kFail = 1, kInvalidArgument = 2 };

struct Api {
    const void* functions[275];

    template <class Function>
    Function at(int position) const {
        return (Function)functions[position];
    }
};

using Status = void*;  // null: success
using Value = void;
using Context = void;

struct ApiBase {
    const Api* (*get_api)(uint32_t version);
    const char* (*get_version)();
};

// What this library calls, with readable signatures.
struct Calls {
    const Api* api;

    Status error(ErrorCode code, const char* text) const { return api->at<Status (*)(int, const char*)>(0)(code, text); }
    Status data(const Value* value, void** out) const {
        return api->at<Status (*)(const Value*, void**)>(51)(value, out);
    }
    Status type_and_shape(const Value* value, void** out) const {
        return api->at<Status (*)(const Value*, void**)>(65)(value, out);
    }
    Status element_type(const void* info, int* out) const { return api->at<Status (*)(const void*, int*)>(60)(info, out); }
    Status rank(const void* info, size_t* out) const { return api->at<Status (*)(const void*, size_t*)>(61)(info, out); }
    Status dims(const void* info, int64_t* out, size_t n) const {
        return api->at<Status (*)(const void*, int64_t*, size_t)>(62)(info, out, n);
    }
    void release_type_and_shape(void* info) const { api->at<void (*)(void*)>(99)(info); }
    Status attribute(const void* info, const char* name, int64_t* out) const {
        return api->at<Status (*)(const void*, const char*, int64_t*)>(86)(info, name, out);
    }
    Status attribute(const void* info, const char* name, float* out) const {
        return api->at<Status (*)(const void*, const char*, float*)>(85)(info, name, out);
    }
    Status attributes(const void* info, const char* name, int64_t* out, size_t* n) const {
        return api->at<Status (*)(const void*, const char*, int64_t*, size_t*)>(163)(info, name, out, n);
    }
    Status input_count(const Context* context, size_t* out) const {
        return api->at<Status (*)(const Context*, size_t*)>(88)(context, out);
    }
    Status input(const Context* context, size_t i, const Value** out) const {
        return api->at<Status (*)(const Context*, size_t, const Value**)>(90)(context, i, out);
    }
    Status output(Context* context, size_t i, const int64_t* dims, size_t rank, Value** out) const {
        return api->at<Status (*)(Context*, size_t, const int64_t*, size_t, Value**)>(91)(context, i, dims, rank, out);
    }
    Status stream(const Context* context, void** out) const {
        return api->at<Status (*)(const Context*, void**)>(193)(context, out);
    }
    Status parallel(const Context* context, void (*work)(void*, size_t), size_t total, void* user) const {
        return api->at<Status (*)(const Context*, void (*)(void*, size_t), size_t, size_t, void*)>(274)(
            context, work, total, 0, user);
    }
    Status create_domain(const char* name, void** out) const {
        return api->at<Status (*)(const char*, void**)>(26)(name, out);
    }
    Status add_operator(void* domain, const struct CustomOp* op) const {
        return api->at<Status (*)(void*, const struct CustomOp*)>(27)(domain, op);
    }
    Status add_domain(void* options, void* domain) const { return api->at<Status (*)(void*, void*)>(28)(options, domain); }
};

// OrtCustomOp of API version 17.
struct CustomOp {
    uint32_t version;
    void* (*create_kernel)(const CustomOp*, const Api*, const void* info);
    const char* (*name)(const CustomOp*);
    const char* (*provider)(const CustomOp*);
    int (*input_type)(const CustomOp*, size_t);
    size_t (*input_count)(const CustomOp*);
    int (*output_type)(const CustomOp*, size_t);
    size_t (*output_count)(const CustomOp*);
    void (*compute)(void* kernel, Context*);
    void (*destroy)(void* kernel);
    int (*input_characteristic)(const CustomOp*, size_t);
    int (*output_characteristic)(const CustomOp*, size_t);
    int (*input_memory)(const CustomOp*, size_t);
    int (*variadic_input_minimum)(const CustomOp*);
    int (*variadic_input_homogeneous)(const CustomOp*);
    int (*variadic_output_minimum)(const CustomOp*);
    int (*variadic_output_homogeneous)(const CustomOp*);
    Status (*create_kernel_2)(const CustomOp*, const Api*, const void* info, void** kernel);
    Status (*compute_2)(void* kernel, Context*);
    Status (*infer_shapes)(const CustomOp*, void*);
    int (*start_version)(const CustomOp*);
    int (*end_version)(const CustomOp*);
    size_t (*may_inplace)(int**, int**);
    void (*release_may_inplace)(int*, int*);
    size_t (*alias_map)(int**, int**);
    void (*release_alias_map)(int*, int*);
};

}  // namespace ort
