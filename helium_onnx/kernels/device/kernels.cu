// Every kernel by the name that the operators look it up with, of the types that the compiler is asked for: linear_<bits>_<block>_<zeros>_<type>[_few], attention_<type>_<size>_<group>[_int8].
#include "attention.cuh"
#include "linear.cuh"
#include "tokens.cuh"

#define LINEAR(bits, block, zeros, suffix, T, few)                                                   \
    extern "C" __global__ void __launch_bounds__(32 * kWarps)                                        \
        linear_##bits##_##block##_##zeros##_##suffix(const __grid_constant__ LinearArguments a) {    \
        linear<Storage<bits, block, zeros>, T, few>(a);                                              \
    }
#define LINEAR_EACH(bits, block, name, T)             \
    LINEAR(bits, block, 0, name, T, false)            \
    LINEAR(bits, block, 0, name##_few, T, true)       \
    LINEAR(bits, block, 1, name, T, false)            \
    LINEAR(bits, block, 1, name##_few, T, true)
#define LINEAR_OF(bits, name, T)      \
    LINEAR_EACH(bits, 32, name, T)    \
    LINEAR_EACH(bits, 64, name, T)    \
    LINEAR_EACH(bits, 128, name, T)   \
    LINEAR_EACH(bits, 256, name, T)
#define ATTENTION(name, T, size, group)                                                              \
    extern "C" __global__ void __launch_bounds__(kAttentionThreads)                                  \
        attention_##name##_##size##_##group(const __grid_constant__ AttentionArguments a) {          \
        attention<T, false, size, group>(a);                                                         \
    }                                                                                                \
    extern "C" __global__ void __launch_bounds__(kAttentionThreads)                                  \
        attention_##name##_##size##_##group##_int8(const __grid_constant__ AttentionArguments a) {   \
        attention<T, true, size, group>(a);                                                          \
    }
#define ATTENTION_OF(name, T)     \
    ATTENTION(name, T, 16, 1)     \
    ATTENTION(name, T, 16, 4)     \
    ATTENTION(name, T, 32, 1)     \
    ATTENTION(name, T, 32, 4)     \
    ATTENTION(name, T, 64, 1)     \
    ATTENTION(name, T, 64, 4)     \
    ATTENTION(name, T, 128, 1)    \
    ATTENTION(name, T, 128, 4)
#define EMBEDDING(bits, name, T)                                                                                        \
    extern "C" __global__ void embedding_##bits##_##name(const __grid_constant__ EmbeddingArguments a) { \
        embedding<bits, T>(a);                                                                                          \
    }
#define ALL_OF(name, T)        \
    LINEAR(16, 0, 0, name, T, false) \
    LINEAR_OF(8, name, T)      \
    LINEAR_OF(4, name, T)      \
    ATTENTION_OF(name, T)      \
    EMBEDDING(16, name, T)     \
    EMBEDDING(8, name, T)      \
    EMBEDDING(4, name, T)

#ifdef HELIUM_HALF
ALL_OF(half, Half)
#endif
#ifdef HELIUM_BFLOAT
ALL_OF(bfloat, Brain)
#endif

extern "C" __global__ void __launch_bounds__(256) argmax_float(const __grid_constant__ ArgMaxArguments a) { argmax(a); }
