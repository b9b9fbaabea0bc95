// What the device kernels share: types, conversions, asynchronous copies, and how one kernel follows another.
//
// Compiled by NVRTC, without any header: conversions are written in PTX. bfloat16 needs compute capability 8.0.
#pragma once

#include "arguments.h"

// A value of two bytes: which of the two types it is, the kernel's template says.
struct Half {
    static __device__ float from(u16 bits) {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
        return x;
    }
    static __device__ u16 to(float x) {
        u16 bits;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
        return bits;
    }
};
struct Brain {
    static __device__ float from(u16 bits) { return __uint_as_float((u32)bits << 16); }
    static __device__ u16 to(float x) {
        u16 bits;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
        return bits;
    }
};

template <class T>
__device__ float low(u32 pair) {
    return T::from((u16)(pair & 0xffff));
}
template <class T>
__device__ float high(u32 pair) {
    return T::from((u16)(pair >> 16));
}
template <>
__device__ inline float high<Brain>(u32 pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

// Copies from global to shared memory that pass no register; a thread sees its own after wait_copies.
__device__ inline u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ inline void copy_async_16(void* to, const void* from, int bytes = 16) {  // the rest of 16 become zeros
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void copy_async_8(void* to, const void* from, int bytes = 8) {  // the rest of 8 become zeros
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void copy_async_4(void* to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ inline void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
__device__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// From Hopper on a kernel may begin while the one before it ends: it fetches what does not depend on that one, and
// waits for the rest. Elsewhere kernels follow each other as they always do.
__device__ inline void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
__device__ inline float warp_top(float x) {
#pragma unroll
    for (int step = 16; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// n / divisor, by `reciprocal_of(divisor)`.
__device__ inline int quotient(int n, u32 reciprocal) { return reciprocal ? (int)__umulhi((u32)n, reciprocal) : n; }

// x, which the compiler is not to compute again where it needs it: it holds registers cheaper than they are.
template <class X>
__device__ X keep(X x) {
    asm volatile("" : "+r"(x));
    return x;
}

template <bool condition, class A, class B>
struct Choose {
    typedef A type;
};
template <class A, class B>
struct Choose<false, A, B> {
    typedef B type;
};
template <class T>
__device__ constexpr bool is_half() {
    return false;
}
template <>
__device__ constexpr bool is_half<Half>() {
    return true;
}

// The power of two that brings `top` to at most `limit`, a power of two; 1 for zero and for what is no number.
__device__ inline float power_below(float limit, float top) {
    const u32 exponent = __float_as_uint(top) & 0x7f800000u, limit_exponent = __float_as_uint(limit) & 0x7f800000u;
    if (exponent == 0 || exponent == 0x7f800000u) return 1;
    const int power = ((int)(limit_exponent - exponent) >> 23) - 1 + 127;
    return __uint_as_float((u32)min(max(power, 1), 254) << 23);
}
