// AVX2 with FMA: 8 rows of a matrix at a time, one in each lane.
#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

#include <cstring>

namespace helium {
namespace {

constexpr int64_t kLanes = 8;
using Floats = __m256;
using Ints = __m256i;

inline Floats zero_floats() { return _mm256_setzero_ps(); }
inline Floats broadcast(float x) { return _mm256_set1_ps(x); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline __m256i first(int64_t n) {  // a mask of the first n lanes
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Floats load_some(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
inline Floats load_some(const uint16_t* p, int64_t n) {  // of float16
    if (n >= 8) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
    alignas(16) uint16_t copy[8] = {};
    std::memcpy(copy, p, 2 * n);
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i*)copy));
}
inline void store_some(float* p, Floats x, int64_t n) { _mm256_maskstore_ps(p, first(n), x); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats negative_fma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }
inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints set_bytes(int8_t x) { return _mm256_set1_epi8(x); }
inline void fetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
template <class T>
inline void keep_alive(T& x) {
    asm volatile("" : "+x"(x));
}

// Sixteen floats.
struct Wide {
    __m256 a, b;
};
inline Wide wide(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Wide wide_zero() { return wide(0); }
inline Wide wide_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Wide wide_load(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline void wide_store(float* p, Wide x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline void wide_store(uint16_t* p, Wide x) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
inline Wide wide_fma(Wide x, Wide y, Wide z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline Wide wide_mul(Wide x, Wide y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Wide wide_div(Wide x, Wide y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Wide wide_add(Wide x, Wide y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Wide wide_max(Wide x, Wide y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Wide wide_min(Wide x, Wide y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Wide wide_abs(Wide x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline Wide wide_nearest(Wide x) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, kNearest), _mm256_round_ps(x.b, kNearest)};
}
inline __m256 power_of_two(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Wide wide_power(Wide x, Wide n) { return wide_mul(x, {power_of_two(n.a), power_of_two(n.b)}); }  // n from -126
inline float wide_maximum(Wide x) {
    const __m256 y = _mm256_max_ps(x.a, x.b);
    __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_max_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_max_ss(z, _mm_shuffle_ps(z, z, 1)));
}
inline int32_t sum_lanes(__m256i x) {
    __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xb1)));
}
using QuantaSum = __m256i;  // of eight sums, added at the end
inline void wide_quantize(Wide x, int8_t* p, QuantaSum& sum) {  // to the nearest whole numbers
    const __m256i a = _mm256_cvtps_epi32(x.a), b = _mm256_cvtps_epi32(x.b);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    sum = _mm256_add_epi32(sum, _mm256_add_epi32(a, b));
}
inline int32_t whole(QuantaSum sum) { return sum_lanes(sum); }
constexpr int kWides = 4;        // accumulators of sixteen floats that fit the registers
constexpr int kActivations = 4;  // rows of activations that one tile serves together
constexpr int kPairRows = 1;    // the same, of two tiles; 1: tiles go alone
constexpr int kTokens = 2;      // of one head that attention handles together
constexpr bool kScoreBlocks = false;  // registers for sixteen sums of a token

// The sums of four vectors' lanes within each 128 bits, x[i]'s in lane i: (0 + 2) + (1 + 3).
inline __m256i add_lanes(__m256i x0, __m256i x1, __m256i x2, __m256i x3) {
    const __m256i a = _mm256_add_epi32(_mm256_unpacklo_epi32(x0, x1), _mm256_unpackhi_epi32(x0, x1));
    const __m256i b = _mm256_add_epi32(_mm256_unpacklo_epi32(x2, x3), _mm256_unpackhi_epi32(x2, x3));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}
inline __m128 add_all_lanes(__m256 x0, __m256 x1, __m256 x2, __m256 x3) {  // then of the two 128 bits
    const __m256 a = _mm256_add_ps(_mm256_unpacklo_ps(x0, x1), _mm256_unpackhi_ps(x0, x1));
    const __m256 b = _mm256_add_ps(_mm256_unpacklo_ps(x2, x3), _mm256_unpackhi_ps(x2, x3));
    const __m256d c = _mm256_castps_pd(a), d = _mm256_castps_pd(b);
    const __m256 u = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(c, d)), _mm256_castpd_ps(_mm256_unpackhi_pd(c, d)));
    return _mm_add_ps(_mm256_castps256_ps128(u), _mm256_extractf128_ps(u, 1));
}

// The sums of sixteen vectors' lanes, x[i]'s in lane i: ((0 + 2) + (1 + 3)) in each 128 bits, then of these likewise.
inline Wide wide_sums(const Wide* x) {
    __m128 u[4];
    for (int i = 0; i < 4; ++i) {
        const Wide* y = x + 4 * i;
        u[i] = _mm_add_ps(add_all_lanes(y[0].a, y[1].a, y[2].a, y[3].a), add_all_lanes(y[0].b, y[1].b, y[2].b, y[3].b));
    }
    return {_mm256_set_m128(u[1], u[0]), _mm256_set_m128(u[3], u[2])};
}

// 64 bytes in place: the even ones, then the odd ones.
inline void separate(int8_t* p) {
    const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    const auto half = [&](int8_t* at) {
        return _mm256_permute4x64_epi64(_mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i*)at), order), 0xd8);
    };
    const __m256i a = half(p), b = half(p + 32);
    _mm256_storeu_si256((__m256i*)p, _mm256_permute2x128_si256(a, b, 0x20));
    _mm256_storeu_si256((__m256i*)(p + 32), _mm256_permute2x128_si256(a, b, 0x31));
}


inline __m256i low_halves(__m256i packed) { return _mm256_and_si256(packed, _mm256_set1_epi8(15)); }
inline __m256i high_halves(__m256i packed) { return low_halves(_mm256_srli_epi16(packed, 4)); }
inline __m256i words_of(const void* p) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p)); }
inline __m256i signed_words_of(const void* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }

// The dot products of 8 rows' next 64 quanta with `q`: one vector for each block, one for the whole where kBlocks is 1.
template <int kBits, int kBlocks>
inline void dot64(const uint8_t* rows, int64_t pitch, const int8_t* q, __m256i* sums) {
    if constexpr (kBits == 4) {
        const __m256i even = _mm256_loadu_si256((const __m256i*)q), odd = _mm256_loadu_si256((const __m256i*)(q + 32));
        const __m256i ones = _mm256_set1_epi16(1);
        __m256i x[8];
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) {
            const __m256i packed = _mm256_loadu_si256((const __m256i*)(rows + r * pitch));
            const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low_halves(packed), even),
                                                   _mm256_maddubs_epi16(high_halves(packed), odd));
            x[r] = _mm256_madd_epi16(pairs, ones);
        }
        const __m256i a = add_lanes(x[0], x[1], x[2], x[3]), b = add_lanes(x[4], x[5], x[6], x[7]);
        const __m256i lower = _mm256_permute2x128_si256(a, b, 0x20), upper = _mm256_permute2x128_si256(a, b, 0x31);
        if constexpr (kBlocks == 2)
            sums[0] = lower, sums[1] = upper;  // the lower 128 bits hold the first 32 columns
        else
            sums[0] = _mm256_add_epi32(lower, upper);
    } else {
        constexpr int kParts = 4 / kBlocks;  // of 16 columns in a block
        for (int block = 0; block < kBlocks; ++block) {
            __m256i x[8];
#pragma GCC unroll 8
            for (int r = 0; r < 8; ++r) {
                x[r] = _mm256_setzero_si256();
                for (int i = block * kParts; i < (block + 1) * kParts; ++i)
                    x[r] = _mm256_add_epi32(x[r], _mm256_madd_epi16(words_of(rows + r * pitch + 16 * i), signed_words_of(q + 16 * i)));
            }
            const __m256i a = add_lanes(x[0], x[1], x[2], x[3]), b = add_lanes(x[4], x[5], x[6], x[7]);
            sums[block] = _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
        }
    }
}

// 8 rows of 8 words, transposed in place.
inline void transpose(__m256i* x) {
    __m256i t[8];
    for (int i = 0; i < 2; ++i) {
        const __m256i a = _mm256_unpacklo_epi32(x[4 * i], x[4 * i + 1]), b = _mm256_unpackhi_epi32(x[4 * i], x[4 * i + 1]);
        const __m256i c = _mm256_unpacklo_epi32(x[4 * i + 2], x[4 * i + 3]);
        const __m256i d = _mm256_unpackhi_epi32(x[4 * i + 2], x[4 * i + 3]);
        t[4 * i] = _mm256_unpacklo_epi64(a, c), t[4 * i + 1] = _mm256_unpackhi_epi64(a, c);
        t[4 * i + 2] = _mm256_unpacklo_epi64(b, d), t[4 * i + 3] = _mm256_unpackhi_epi64(b, d);
    }
    for (int j = 0; j < 4; ++j) {
        x[j] = _mm256_permute2x128_si256(t[j], t[4 + j], 0x20);
        x[4 + j] = _mm256_permute2x128_si256(t[j], t[4 + j], 0x31);
    }
}

// 8 rows' next 64 quanta as 16 vectors: word r of vector g are the 4 quanta of row r that meet word g of activations.
template <int kBits>
inline void unpack64(const uint8_t* rows, int64_t pitch, uint8_t* out) {
    for (int part = 0; part < (kBits == 4 ? 1 : 2); ++part) {
        __m256i x[8];
        for (int r = 0; r < 8; ++r) x[r] = _mm256_loadu_si256((const __m256i*)(rows + r * pitch + 32 * part));
        transpose(x);
        for (int g = 0; g < 8; ++g) {
            auto* at = (__m256i*)(out + 32 * (g + 8 * part));
            if constexpr (kBits == 4) {
                _mm256_store_si256(at, low_halves(x[g]));
                _mm256_store_si256(at + 8, high_halves(x[g]));
            } else {
                _mm256_store_si256(at, x[g]);
            }
        }
    }
}

inline __m256i load_word(const uint8_t* p) { return _mm256_load_si256((const __m256i*)p); }

// Sums of products, as they grow while a block's words go by: 4 bits in 16 bits, which 8 words do not overflow.
template <int kBits>
struct Dots;
template <>
struct Dots<4> {
    Ints sum = _mm256_setzero_si256(), pairs = _mm256_setzero_si256();
    void word(__m256i weights, const int8_t* q) {
        int32_t four;
        std::memcpy(&four, q, 4);
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(weights, _mm256_set1_epi32(four)));
    }
    void widen() {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        pairs = _mm256_setzero_si256();
    }
};
template <>
struct Dots<8> {
    Ints sum = _mm256_setzero_si256(), lower = _mm256_setzero_si256(), upper = _mm256_setzero_si256();
    void word(__m256i weights, const int8_t* q) {
        int32_t four;
        std::memcpy(&four, q, 4);
        const __m256i x = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four)));
        lower = _mm256_add_epi32(lower, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(weights)), x));
        upper = _mm256_add_epi32(upper, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_extracti128_si256(weights, 1)), x));
    }
    void widen() {
        sum = _mm256_add_epi32(sum, _mm256_permute4x64_epi64(_mm256_hadd_epi32(lower, upper), 0xd8));
        lower = upper = _mm256_setzero_si256();
    }
};

// The scales of 8 rows at that pitch, `n` <= 8 blocks of each, as a vector for each block.
template <class Scale>
inline void transpose_scales(const Scale* p, int64_t pitch, int64_t n, float* out) {
    __m256i x[8];
    for (int r = 0; r < 8; ++r) x[r] = _mm256_castps_si256(load_some(p + r * pitch, n));
    transpose(x);
    for (int b = 0; b < n; ++b) _mm256_store_si256((__m256i*)(out + 8 * b), x[b]);
}

// The same of zeros, `bits` each, as floats: a word of a row's zeros in each lane, shifted from block to block.
inline void transpose_zeros(const uint8_t* p, int64_t pitch, int64_t n, int64_t bits, float* out) {
    const int64_t bytes = (n * bits + 7) / 8, in_word = 32 / bits;
    const __m256i mask = _mm256_set1_epi32((1 << bits) - 1);
    for (int64_t first_block = 0; first_block < n; first_block += in_word) {
        const int64_t offset = first_block * bits / 8, count = bytes - offset < 4 ? bytes - offset : 4;
        uint32_t words[8] = {};
        for (int r = 0; r < 8; ++r) std::memcpy(&words[r], p + r * pitch + offset, count);
        __m256i x = _mm256_loadu_si256((const __m256i*)words);
        for (int64_t b = first_block; b < n && b < first_block + in_word; ++b) {
            _mm256_store_ps(out + 8 * b, _mm256_cvtepi32_ps(_mm256_and_si256(x, mask)));
            x = _mm256_srli_epi32(x, (int)bits);
        }
    }
}

inline __m256i int8_products(__m256i sum, __m256i w) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, w), _mm256_set1_epi16(1)));
}
constexpr int64_t kInt8Operations = 32 * 2;

inline uint64_t xor_words(const uint8_t* p, int64_t bytes) {
    __m256i s[8] = {};
    for (int64_t i = 0; i < bytes; i += 256)
        for (int j = 0; j < 8; ++j) s[j] = _mm256_xor_si256(s[j], _mm256_loadu_si256((const __m256i*)(p + i + 32 * j)));
    for (int j = 1; j < 8; ++j) s[0] = _mm256_xor_si256(s[0], s[j]);
    return (uint64_t)_mm256_extract_epi64(s[0], 0) ^ (uint64_t)_mm256_extract_epi64(s[0], 3);
}

}  // namespace
}  // namespace helium

#define HELIUM_NAME "avx2"
#define HELIUM_TABLE avx2_kernels
// F16C is not asked for: Clang before 15 does not know its name, and every processor with AVX2 has it.
#define HELIUM_SUPPORTED \
    (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#include "vectors.inl"

#else
const helium::Kernels* helium::avx2_kernels() { return nullptr; }
#endif
