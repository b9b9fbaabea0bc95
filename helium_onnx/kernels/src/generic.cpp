// Any processor: plain C++, and the reference that the vector files are held to, bit for bit.
#include "half.h"
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace helium {
namespace {

constexpr int64_t kLanes = 8;

template <class T, int kSize>
struct Vector {
    T at[kSize];
};
using Floats = Vector<float, kLanes>;
using Ints = Vector<int32_t, kLanes>;
using Wide = Vector<float, 16>;

template <class V, class Function>
inline V each(const Function& function) {
    V out;
    for (int i = 0; i < (int)(sizeof(out.at) / sizeof(out.at[0])); ++i) out.at[i] = function(i);
    return out;
}

inline Floats broadcast(float x) { return each<Floats>([&](int) { return x; }); }
inline Floats zero_floats() { return broadcast(0); }
inline Floats load(const float* p) { return each<Floats>([&](int i) { return p[i]; }); }
inline void store_some(float* p, Floats x, int64_t n) { std::copy(x.at, x.at + n, p); }
inline Floats fma(Floats a, Floats b, Floats c) {
    return each<Floats>([&](int i) { return std::fmaf(a.at[i], b.at[i], c.at[i]); });
}
inline Floats negative_fma(Floats a, Floats b, Floats c) {
    return each<Floats>([&](int i) { return std::fmaf(-a.at[i], b.at[i], c.at[i]); });
}
inline Floats mul(Floats a, Floats b) {
    return each<Floats>([&](int i) { return a.at[i] * b.at[i]; });
}
inline Floats to_floats(Ints a) {
    return each<Floats>([&](int i) { return (float)a.at[i]; });
}
inline Ints add_ints(Ints a, Ints b) {
    return each<Ints>([&](int i) { return a.at[i] + b.at[i]; });
}
inline Ints set_bytes(int8_t x) {
    return each<Ints>([&](int) { return x; });
}
inline void fetch(const void* p) { __builtin_prefetch(p); }
template <class T>
inline void keep_alive(T& x) {
    asm volatile("" : "+m"(x));
}

inline Wide wide(float x) {
    return each<Wide>([&](int) { return x; });
}
inline Wide wide_zero() { return wide(0); }
inline Wide wide_load(const float* p) {
    return each<Wide>([&](int i) { return p[i]; });
}
inline Wide wide_load(const uint16_t* p) {
    return each<Wide>([&](int i) { return from_half(p[i]); });
}
inline void wide_store(float* p, Wide x) { std::copy(x.at, x.at + 16, p); }
inline void wide_store(uint16_t* p, Wide x) {
    for (int i = 0; i < 16; ++i) p[i] = to_half(x.at[i]);
}
inline Wide wide_fma(Wide a, Wide b, Wide c) {
    return each<Wide>([&](int i) { return std::fmaf(a.at[i], b.at[i], c.at[i]); });
}
inline Wide wide_mul(Wide a, Wide b) {
    return each<Wide>([&](int i) { return a.at[i] * b.at[i]; });
}
inline Wide wide_div(Wide a, Wide b) {
    return each<Wide>([&](int i) { return a.at[i] / b.at[i]; });
}
inline Wide wide_add(Wide a, Wide b) {
    return each<Wide>([&](int i) { return a.at[i] + b.at[i]; });
}
inline Wide wide_max(Wide a, Wide b) {
    return each<Wide>([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
}
inline Wide wide_min(Wide a, Wide b) {
    return each<Wide>([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
}
inline Wide wide_abs(Wide a) {
    return each<Wide>([&](int i) { return std::fabs(a.at[i]); });
}
inline Wide wide_nearest(Wide a) {
    return each<Wide>([&](int i) { return std::nearbyintf(a.at[i]); });
}
inline Wide wide_power(Wide a, Wide n) {
    return each<Wide>([&](int i) { return std::ldexp(a.at[i], (int)n.at[i]); });
}
inline float wide_maximum(Wide a) { return *std::max_element(a.at, a.at + 16); }
using QuantaSum = int32_t;
inline void wide_quantize(Wide a, int8_t* p, QuantaSum& sum) {  // to the nearest whole numbers
    for (int i = 0; i < 16; ++i) sum += p[i] = (int8_t)std::nearbyintf(a.at[i]);
}
inline int32_t whole(QuantaSum sum) { return sum; }
constexpr int kWides = 4;
constexpr int kActivations = 4;
constexpr int kPairRows = 1;    // the same, of two tiles; 1: tiles go alone
constexpr int kTokens = 2;      // of one head that attention handles together
constexpr bool kScoreBlocks = false;  // registers for sixteen sums of a token

// The sums of sixteen vectors' lanes, x[i]'s in lane i: ((0 + 2) + (1 + 3)) in each four, then of these likewise.
inline Wide wide_sums(const Wide* x) {
    return each<Wide>([&](int i) {
        float four[4];
        for (int j = 0; j < 4; ++j) {
            const float* y = x[i].at + 4 * j;
            four[j] = (y[0] + y[2]) + (y[1] + y[3]);
        }
        return (four[0] + four[1]) + (four[2] + four[3]);
    });
}

// 64 bytes in place: the even ones, then the odd ones.
inline void separate(int8_t* p) {
    int8_t x[64];
    for (int i = 0; i < 32; ++i) x[i] = p[2 * i], x[32 + i] = p[2 * i + 1];
    std::memcpy(p, x, 64);
}


// Quantum `i` of 64, in the order of activations: of 4 bits the even columns come first.
template <int kBits>
inline uint8_t quantum(const uint8_t* p, int i) {
    if (kBits == 8) return p[i];
    return i < 32 ? p[i] & 15 : p[i - 32] >> 4;
}

template <int kBits, int kBlocks>
inline void dot64(const uint8_t* rows, int64_t pitch, const int8_t* q, Ints* sums) {
    for (int b = 0; b < kBlocks; ++b)
        sums[b] = each<Ints>([&](int) { return 0; });
    for (int r = 0; r < kLanes; ++r)
        for (int i = 0; i < 64; ++i) {
            const int column = kBits == 8 ? i : i < 32 ? 2 * i : 2 * (i - 32) + 1;
            sums[column * kBlocks / 64].at[r] += quantum<kBits>(rows + r * pitch, i) * q[i];
        }
}

template <int kBits>
inline void unpack64(const uint8_t* rows, int64_t pitch, uint8_t* out) {
    for (int r = 0; r < kLanes; ++r)
        for (int i = 0; i < 64; ++i) out[i / 4 * 4 * kLanes + 4 * r + i % 4] = quantum<kBits>(rows + r * pitch, i);
}

inline const uint8_t* load_word(const uint8_t* p) { return p; }

template <int kBits>
struct Dots {
    Ints sum = each<Ints>([](int) { return 0; });
    void word(const uint8_t* weights, const int8_t* q) {
        for (int r = 0; r < kLanes; ++r)
            for (int i = 0; i < 4; ++i) sum.at[r] += weights[4 * r + i] * q[i];
    }
    void widen() {}
};

inline float to_float(float x) { return x; }
inline float to_float(uint16_t x) { return from_half(x); }

template <class Scale>
inline void transpose_scales(const Scale* p, int64_t pitch, int64_t n, float* out) {
    for (int64_t b = 0; b < n; ++b)
        for (int64_t r = 0; r < kLanes; ++r) out[kLanes * b + r] = to_float(p[r * pitch + b]);
}

inline void transpose_zeros(const uint8_t* p, int64_t pitch, int64_t n, int64_t bits, float* out) {
    for (int64_t b = 0; b < n; ++b)
        for (int64_t r = 0; r < kLanes; ++r)
            out[kLanes * b + r] = bits == 8 ? p[r * pitch + b] : p[r * pitch + b / 2] >> (b % 2 * 4) & 15;
}

inline Ints int8_products(Ints sum, Ints w) {
    return each<Ints>([&](int i) { return sum.at[i] + w.at[i] * w.at[i]; });
}
constexpr int64_t kInt8Operations = kLanes * 2;

inline uint64_t xor_words(const uint8_t* p, int64_t bytes) {
    uint64_t sum = 0, word;
    for (int64_t i = 0; i < bytes; i += 8) {
        std::memcpy(&word, p + i, 8);
        sum ^= word;
    }
    return sum;
}

}  // namespace
}  // namespace helium

#define HELIUM_NAME "generic"
#define HELIUM_TABLE generic_kernels
#define HELIUM_SUPPORTED true
#include "vectors.inl"
