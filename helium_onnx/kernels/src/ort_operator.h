// What the operators of this package share, for CPUs and for CUDA: reading inputs and attributes, and registration.
#pragma once

#include <initializer_list>
#include <memory>
#include <vector>

#include "ort_abi.h"

namespace helium {

using ort::Calls;
using ort::Status;

#define RETURN_IF_ERROR(call) \
    if (Status status_ = (call)) return status_

constexpr size_t kNone = ~(size_t)0;

struct Tensor {
    char* data = nullptr;
    int64_t dims[4] = {1, 1, 1, 1};
    size_t rank = 0;
    int type = 0;
};

inline Status read(const Calls& ort, const ort::Value* value, Tensor* out) {
    void* info = nullptr;
    RETURN_IF_ERROR(ort.data(value, (void**)&out->data));
    RETURN_IF_ERROR(ort.type_and_shape(value, &info));
    Status status = ort.element_type(info, &out->type);
    if (!status) status = ort.rank(info, &out->rank);
    if (!status && out->rank > 4) status = ort.error(ort::kInvalidArgument, "a tensor of more than 4 dimensions");
    if (!status) status = ort.dims(info, out->dims, out->rank);
    ort.release_type_and_shape(info);
    return status;
}

inline Status read_input(const Calls& ort, const ort::Context* context, size_t i, Tensor* out) {
    const ort::Value* value = nullptr;
    RETURN_IF_ERROR(ort.input(context, i, &value));
    return read(ort, value, out);
}

inline Status list(const Calls& ort, const void* info, const char* name, std::vector<int64_t>* out) {
    size_t n = 0;
    RETURN_IF_ERROR(ort.attributes(info, name, nullptr, &n));
    out->resize(n);
    return ort.attributes(info, name, out->data(), &n);
}

// ONNX Runtime's table for one operator, which has: kName, kProvider (null: the CPU's), kInputs, kOutputs, kVariadic (the
// input that stands for any number, or kNone), input_type, output_type, init and compute.
template <class Operator>
struct Registration : ort::CustomOp {
    Registration() : ort::CustomOp{} {
        version = ort::kApiVersion;
        name = [](const ort::CustomOp*) { return Operator::kName; };
        provider = [](const ort::CustomOp*) -> const char* { return Operator::kProvider; };
        input_count = [](const ort::CustomOp*) { return Operator::kInputs; };
        output_count = [](const ort::CustomOp*) { return Operator::kOutputs; };
        input_type = [](const ort::CustomOp*, size_t i) -> int { return Operator::input_type(i); };
        output_type = [](const ort::CustomOp*, size_t i) -> int { return Operator::output_type(i); };
        input_characteristic = [](const ort::CustomOp*, size_t i) -> int { return i == Operator::kVariadic ? ort::kVariadic : ort::kRequired; };
        output_characteristic = [](const ort::CustomOp*, size_t) -> int { return ort::kRequired; };
        input_memory = [](const ort::CustomOp*, size_t) { return 0; };
        variadic_input_minimum = [](const ort::CustomOp*) { return 1; };
        variadic_input_homogeneous = [](const ort::CustomOp*) { return 0; };
        variadic_output_minimum = [](const ort::CustomOp*) { return 1; };
        variadic_output_homogeneous = [](const ort::CustomOp*) { return 1; };
        start_version = [](const ort::CustomOp*) { return 1; };
        end_version = [](const ort::CustomOp*) { return 1 << 30; };
        create_kernel_2 = [](const ort::CustomOp*, const ort::Api* api, const void* info, void** kernel) -> Status {
            auto made = std::make_unique<Operator>();
            made->ort = Calls{api};
            RETURN_IF_ERROR(made->init(info));
            *kernel = made.release();
            return nullptr;
        };
        compute_2 = [](void* kernel, ort::Context* context) { return ((const Operator*)kernel)->compute(context); };
        destroy = [](void* kernel) { delete (Operator*)kernel; };
    }
};

// Add the operators to the domain of this package, and that to a session's options.
inline Status register_operators(const Calls& ort, void* options, std::initializer_list<const ort::CustomOp*> operators) {
    static void* domain = nullptr;  // one for all sessions: it must outlive them
    if (!domain) {
        RETURN_IF_ERROR(ort.create_domain("helium_onnx.kernels", &domain));
        for (const ort::CustomOp* op : operators) RETURN_IF_ERROR(ort.add_operator(domain, op));
    }
    return ort.add_domain(options, domain);
}

}  // namespace helium
