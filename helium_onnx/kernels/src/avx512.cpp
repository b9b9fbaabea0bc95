// AVX-512 with VNNI: 16 rows of a matrix at a time, one in each lane.
#include "kernels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>

namespace helium {
namespace {

constexpr int64_t kLanes = 16;
using Floats = __m512;
using Ints = __m512i;

inline Floats zero_floats() { return _mm512_setzero_ps(); }
inline Floats broadcast(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
inline Floats load_some(const float* p, int64_t n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
inline Floats load_some(const uint16_t* p, int64_t n) {  // of float16
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
}
inline void store_some(float* p, Floats x, int64_t n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), x); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats negative_fma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }

// Sixteen floats: here one vector, as wide as a tile.
using Wide = __m512;
inline Wide wide_zero() { return _mm512_setzero_ps(); }
inline Wide wide(float x) { return _mm512_set1_ps(x); }
inline Wide wide_load(const float* p) { return _mm512_loadu_ps(p); }
inline Wide wide_load(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline void wide_store(float* p, Wide x) { _mm512_storeu_ps(p, x); }
inline void wide_store(uint16_t* p, Wide x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
inline Wide wide_fma(Wide a, Wide b, Wide c) { return _mm512_fmadd_ps(a, b, c); }
inline Wide wide_mul(Wide a, Wide b) { return _mm512_mul_ps(a, b); }
inline Wide wide_div(Wide a, Wide b) { return _mm512_div_ps(a, b); }
inline Wide wide_add(Wide a, Wide b) { return _mm512_add_ps(a, b); }
inline Wide wide_max(Wide a, Wide b) { return _mm512_max_ps(a, b); }
inline Wide wide_min(Wide a, Wide b) { return _mm512_min_ps(a, b); }
inline Wide wide_abs(Wide a) { return _mm512_abs_ps(a); }
inline Wide wide_nearest(Wide a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Wide wide_power(Wide a, Wide n) { return _mm512_scalef_ps(a, n); }  // a * 2^n, n whole
inline float wide_maximum(Wide a) { return _mm512_reduce_max_ps(a); }
using QuantaSum = __m512i;  // of sixteen sums, added at the end
inline void wide_quantize(Wide a, int8_t* p, QuantaSum& sum) {  // to the nearest whole numbers
    const __m512i n = _mm512_cvtps_epi32(a);
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(n));
    sum = _mm512_add_epi32(sum, n);
}
inline int32_t whole(QuantaSum sum) { return _mm512_reduce_add_epi32(sum); }
inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints set_bytes(int8_t x) { return _mm512_set1_epi8(x); }
template <class T>
inline void keep_alive(T& x) { asm volatile("" : "+v"(x)); }

// 64 bytes in place: the even ones, then the odd ones.
inline void separate(int8_t* p) {
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    const __m512i x = _mm512_shuffle_epi8(_mm512_loadu_si512(p), order);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), x));
}

constexpr int kWides = 8;       // accumulators of sixteen floats that fit the registers
constexpr int kActivations = 8;  // rows of activations that one tile serves together
constexpr int kPairRows = 6;    // the same, of two tiles; 1: tiles go alone
constexpr int kTokens = 4;      // of one head that attention handles together
constexpr bool kScoreBlocks = true;  // registers for sixteen sums of a token

inline void fetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

// Lane j of result i, of 4 rows' partial sums x0..x3: within each 128 bits, the sums of row j's four lanes.
inline __m512i add_lanes(__m512i x0, __m512i x1, __m512i x2, __m512i x3) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(x0, x1), _mm512_unpackhi_epi32(x0, x1));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(x2, x3), _mm512_unpackhi_epi32(x2, x3));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// The same 32 bytes of two rows, side by side: two rows share every operation on them.
inline __m512i two_rows(const uint8_t* lower, const uint8_t* upper) {
    const __m512i first = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)lower));
    return _mm512_inserti64x4(first, _mm256_loadu_si256((const __m256i*)upper), 1);
}
inline __m512i for_two_rows(const int8_t* q) { return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)q)); }

// Of eight vectors that each hold the partial sums of rows r and r + 4 (r from 0, then from 8): the sums of all 16 rows'
// first 128 bits and of their second.
inline void sums_of_rows(const __m512i* x, __m512i* first, __m512i* second) {
    const __m512i a = add_lanes(x[0], x[1], x[2], x[3]), b = add_lanes(x[4], x[5], x[6], x[7]);
    *first = _mm512_shuffle_i32x4(a, b, 0x88);
    *second = _mm512_shuffle_i32x4(a, b, 0xdd);
}

// The dot products of 16 rows' next 64 quanta with `q`: one vector for each block, one for the whole where kBlocks is 1.
template <int kBits, int kBlocks>
inline void dot64(const uint8_t* rows, int64_t pitch, const int8_t* q, __m512i* sums) {
    const __m512i q_first = for_two_rows(q), q_second = for_two_rows(q + 32);
    const __m512i low = _mm512_set1_epi8(15);
    __m512i x[8], y[8];  // y: of the second 32 columns, where they are not added to the first
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        const uint8_t *lower = rows + (i / 4 * 8 + i % 4) * pitch, *upper = lower + 4 * pitch;
        const __m512i zero = _mm512_setzero_si512();
        if constexpr (kBits == 4) {  // even columns, odd columns
            const __m512i packed = two_rows(lower, upper);
            x[i] = _mm512_dpbusd_epi32(zero, _mm512_and_si512(packed, low), q_first);
            x[i] = _mm512_dpbusd_epi32(x[i], _mm512_and_si512(_mm512_srli_epi16(packed, 4), low), q_second);
        } else {
            x[i] = _mm512_dpbusd_epi32(zero, two_rows(lower, upper), q_first);
            const __m512i second = two_rows(lower + 32, upper + 32);
            if constexpr (kBlocks == 1)
                x[i] = _mm512_dpbusd_epi32(x[i], second, q_second);
            else
                y[i] = _mm512_dpbusd_epi32(zero, second, q_second);
        }
    }
    __m512i a, b;
    sums_of_rows(x, &a, &b);
    if constexpr (kBlocks == 1) {
        sums[0] = _mm512_add_epi32(a, b);
    } else if constexpr (kBits == 4) {  // 128 bits are of 32 columns
        sums[0] = a, sums[1] = b;
    } else {
        __m512i c, d;
        sums_of_rows(y, &c, &d);
        if constexpr (kBlocks == 2)
            sums[0] = _mm512_add_epi32(a, b), sums[1] = _mm512_add_epi32(c, d);
        else
            sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
    }
}

// The sums of sixteen vectors' lanes, x[i]'s in lane i: ((0 + 2) + (1 + 3)) in each 128 bits, then of these likewise.
inline Wide wide_sums(const Wide* x) {
    Wide u[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const Wide a = _mm512_add_ps(_mm512_unpacklo_ps(x[4 * i], x[4 * i + 1]), _mm512_unpackhi_ps(x[4 * i], x[4 * i + 1]));
        const Wide b = _mm512_add_ps(_mm512_unpacklo_ps(x[4 * i + 2], x[4 * i + 3]),
                                     _mm512_unpackhi_ps(x[4 * i + 2], x[4 * i + 3]));
        const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
        u[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
    }
    const Wide a = _mm512_add_ps(_mm512_shuffle_f32x4(u[0], u[1], 0x88), _mm512_shuffle_f32x4(u[0], u[1], 0xdd));
    const Wide b = _mm512_add_ps(_mm512_shuffle_f32x4(u[2], u[3], 0x88), _mm512_shuffle_f32x4(u[2], u[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

// 16 rows of 16 words, transposed in place.
inline void transpose(__m512i* x) {
    __m512i t[16];
    for (int i = 0; i < 4; ++i) {
        const __m512i a = _mm512_unpacklo_epi32(x[4 * i], x[4 * i + 1]), b = _mm512_unpackhi_epi32(x[4 * i], x[4 * i + 1]);
        const __m512i c = _mm512_unpacklo_epi32(x[4 * i + 2], x[4 * i + 3]);
        const __m512i d = _mm512_unpackhi_epi32(x[4 * i + 2], x[4 * i + 3]);
        t[4 * i] = _mm512_unpacklo_epi64(a, c);
        t[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        t[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        t[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for (int j = 0; j < 4; ++j) {  // t[4i + j] holds, in its 128 bits l, words 4l + j of rows 4i .. 4i + 3
        const __m512i a = _mm512_shuffle_i32x4(t[j], t[4 + j], 0x44), b = _mm512_shuffle_i32x4(t[j], t[4 + j], 0xee);
        const __m512i c = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0x44), d = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0xee);
        x[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        x[4 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        x[8 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        x[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}

// 16 rows' next 64 quanta as 16 vectors: word r of vector g are the 4 quanta of row r that meet word g of activations.
template <int kBits>
inline void unpack64(const uint8_t* rows, int64_t pitch, uint8_t* out) {
    if constexpr (kBits == 8) {
        __m512i x[16];
        for (int r = 0; r < 16; ++r) x[r] = _mm512_loadu_si512(rows + r * pitch);
        transpose(x);
        for (int g = 0; g < 16; ++g) _mm512_store_si512(out + 64 * g, x[g]);
        return;
    }
    // Transposed while packed, which is half the work: a packed word holds word g in its lower halves, g + 8 above.
    const auto pair = [&](int r) {  // rows r and r + 4
        const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)(rows + r * pitch)));
        return _mm512_inserti64x4(low, _mm256_loadu_si256((const __m256i*)(rows + (r + 4) * pitch)), 1);
    };
    __m512i t[2][4];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        const __m512i x0 = pair(8 * i), x1 = pair(8 * i + 1), x2 = pair(8 * i + 2), x3 = pair(8 * i + 3);
        const __m512i a = _mm512_unpacklo_epi32(x0, x1), b = _mm512_unpackhi_epi32(x0, x1);
        const __m512i c = _mm512_unpacklo_epi32(x2, x3), d = _mm512_unpackhi_epi32(x2, x3);
        t[i][0] = _mm512_unpacklo_epi64(a, c), t[i][1] = _mm512_unpackhi_epi64(a, c);
        t[i][2] = _mm512_unpacklo_epi64(b, d), t[i][3] = _mm512_unpackhi_epi64(b, d);
    }
    const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
        const __m512i a = t[0][g % 4], b = t[1][g % 4];
        const __m512i packed = g < 4 ? _mm512_shuffle_i32x4(a, b, 0x88) : _mm512_shuffle_i32x4(a, b, 0xdd);
        _mm512_store_si512(out + 64 * g, _mm512_and_si512(packed, low));
        _mm512_store_si512(out + 64 * (g + 8), _mm512_and_si512(_mm512_srli_epi16(packed, 4), low));
    }
}

// Sums of products, as they grow while a block's words go by: here in 32 bits throughout.
template <int kBits>
struct Dots {
    Ints sum = _mm512_setzero_si512();
    void word(__m512i weights, const int8_t* q) { sum = _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(*(const int32_t*)q)); }
    void widen() {}
};
inline __m512i load_word(const uint8_t* p) { return _mm512_load_si512(p); }

// The scales of 16 rows at that pitch, `n` <= 16 blocks of each, as a vector for each block.
template <class Scale>
inline void transpose_scales(const Scale* p, int64_t pitch, int64_t n, float* out) {
    __m512i x[16];
    for (int r = 0; r < 16; ++r) x[r] = _mm512_castps_si512(load_some(p + r * pitch, n));
    transpose(x);
    for (int b = 0; b < n; ++b) _mm512_store_si512(out + 16 * b, x[b]);
}

// The same of zeros, `bits` each, as floats.
inline void transpose_zeros(const uint8_t* p, int64_t pitch, int64_t n, int64_t bits, float* out) {
    __m512i x[16];
    const __mmask16 mask = (__mmask16)((1u << ((n * bits + 7) / 8)) - 1);
    for (int r = 0; r < 16; ++r) {
        __m128i z = _mm_maskz_loadu_epi8(mask, p + r * pitch);
        if (bits == 4) {
            const __m128i low = _mm_set1_epi8(15);
            z = _mm_unpacklo_epi8(_mm_and_si128(z, low), _mm_and_si128(_mm_srli_epi16(z, 4), low));
        }
        x[r] = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(z)));
    }
    transpose(x);
    for (int b = 0; b < n; ++b) _mm512_store_si512(out + 16 * b, x[b]);
}

inline __m512i int8_products(__m512i sum, __m512i w) { return _mm512_dpbusd_epi32(sum, w, w); }
constexpr int64_t kInt8Operations = 64 * 2;

inline uint64_t xor_words(const uint8_t* p, int64_t bytes) {
    __m512i s[4] = {};
    for (int64_t i = 0; i < bytes; i += 256)
        for (int j = 0; j < 4; ++j) s[j] = _mm512_xor_si512(s[j], _mm512_loadu_si512(p + i + 64 * j));
    return _mm512_reduce_add_epi64(_mm512_xor_si512(_mm512_xor_si512(s[0], s[1]), _mm512_xor_si512(s[2], s[3])));
}

}  // namespace
}  // namespace helium

#define HELIUM_NAME "avx512-vnni"
#define HELIUM_TABLE avx512_kernels
#define HELIUM_SUPPORTED                                                                             \
    (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&                   \
     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
#include "vectors.inl"

#else
const helium::Kernels* helium::avx512_kernels() { return nullptr; }
#endif
