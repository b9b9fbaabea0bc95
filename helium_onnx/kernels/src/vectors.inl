// What the vector files share: included at the end of each, over its types and inline functions.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

namespace helium {
namespace {

// exp(x) by 2^n times a polynomial (Cephes' coefficients), for x up to 88; 0 is approached, not reached.
inline Wide exponential(Wide x) {
    x = wide_max(wide(-87.0f), wide_min(wide(88.0f), x));  // in this order a NaN stays one
    const Wide n = wide_nearest(wide_mul(x, wide(1.44269504088896341f)));
    x = wide_fma(n, wide(-0.693359375f), x);
    x = wide_fma(n, wide(2.12194440e-4f), x);
    Wide y = wide(1.9875691500e-4f);
    y = wide_fma(y, x, wide(1.3981999507e-3f));
    y = wide_fma(y, x, wide(8.3334519073e-3f));
    y = wide_fma(y, x, wide(4.1665795894e-2f));
    y = wide_fma(y, x, wide(1.6666665459e-1f));
    y = wide_fma(y, x, wide(5.0000001201e-1f));
    y = wide_fma(y, wide_mul(x, x), x);
    return wide_power(wide_add(y, wide(1.0f)), n);
}

inline Wide gate(Wide x, Wide y) {  // silu(x) * y
    const Wide bottom = wide_add(wide(1.0f), exponential(wide_mul(x, wide(-1.0f))));
    return wide_mul(wide_div(x, bottom), y);
}

thread_local std::vector<float> t_row;      // a row of activations, padded
thread_local std::vector<float> t_scores;   // of queries with all keys
thread_local std::vector<float> t_block;    // sixteen keys

float* buffer(std::vector<float>& owner, int64_t size) {
    if ((int64_t)owner.size() < size) owner.resize(size);
    return owner.data();
}

constexpr int64_t kScores = 64 << 10;  // of queries that go together
constexpr float kLeast = 1e-36f;  // of a smaller one the inverse would be infinite

void quantize_row(const float* row, int64_t columns, int64_t block_size, bool paired, bool gated, int8_t* quanta,
                  float* scales, float* sums) {
    const int64_t blocks = (columns + block_size - 1) / block_size, padded = (blocks * block_size + 63) / 64 * 64;
    const float* x = row;
    if (gated || columns < padded) {
        float* copy = buffer(t_row, padded);
        std::fill(copy + columns / 16 * 16, copy + padded, 0.0f);
        int64_t i = 0;
        if (gated) {
            for (; i + 16 <= columns; i += 16) wide_store(copy + i, gate(wide_load(row + i), wide_load(row + columns + i)));
            if (i < columns) {
                float g[16] = {}, u[16] = {}, y[16];
                std::copy(row + i, row + columns, g);
                std::copy(row + columns + i, row + 2 * columns, u);
                wide_store(y, gate(wide_load(g), wide_load(u)));
                std::copy(y, y + columns - i, copy + i);
            }
        } else {
            std::copy(row, row + columns, copy);
        }
        x = copy;
    }
    std::memset(quanta + blocks * block_size, 0, padded - blocks * block_size);
    Wide poison = wide_zero();  // NaN as soon as an activation is NaN or infinite, which no 8 bits can tell
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t begin = b * block_size, end = begin + block_size;  // block sizes are multiples of 16
        Wide most = wide_zero();
        for (int64_t i = begin; i < end; i += 16) {
            const Wide values = wide_load(x + i);
            most = wide_max(most, wide_abs(values));
            poison = wide_fma(values, wide_zero(), poison);
        }
        const float peak = wide_maximum(most);
        const Wide inverse = wide(peak > kLeast ? 127.0f / peak : 0.0f);
        QuantaSum sum{};
        for (int64_t i = begin; i < end; i += 16) wide_quantize(wide_mul(wide_load(x + i), inverse), quanta + i, sum);
        scales[b] = peak / 127.0f;
        sums[b] = (float)whole(sum);
    }
    float lanes[16], poisoned = 0;
    wide_store(lanes, poison);
    for (float lane : lanes) poisoned += lane;
    if (poisoned != 0) std::fill(scales, scales + blocks, NAN);  // so that the output says so
    if (!paired) return;
    for (int64_t i = 0; i < padded; i += 64) separate(quanta + i);
}

// A tile: kLanes rows of a matrix, whole 64 columns of each readable; the last ones of a matrix are copied for that.
struct Tile {
    const uint8_t* quanta;
    const char* scales;
    const uint8_t* zeros;
};

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
int64_t padded_columns(const Matrix& m) { return (m.blocks() * m.block_size + 63) / 64 * 64; }

int64_t scratch_bytes(const Matrix& m) {
    const int64_t copies = aligned(kLanes * m.pitch() + 64) + aligned(kLanes * m.scale_pitch()) + aligned(kLanes * m.zero_pitch());
    const int64_t factors = 4 * aligned(kLanes * m.blocks() * 4);
    return copies + factors + 2 * aligned(kLanes * padded_columns(m));  // of two tiles
}

Tile tile_at(const Matrix& m, int64_t n, char*& scratch) {
    const int64_t there = std::min(kLanes, m.rows - n), pitch = m.pitch(), scale_pitch = m.scale_pitch();
    Tile tile{m.quanta + n * pitch, (const char*)m.scales + n * scale_pitch, m.zeros ? m.zeros + n * m.zero_pitch() : nullptr};
    char* copy = scratch;
    scratch += aligned(kLanes * pitch + 64) + aligned(kLanes * scale_pitch) + aligned(kLanes * m.zero_pitch());
    const bool whole = m.blocks() * m.block_size % 64 == 0;
    if (there == kLanes && (whole || n + kLanes < m.rows)) return tile;
    std::memset(copy, 0, scratch - copy);
    std::memcpy(copy, tile.quanta, there * pitch);
    tile.quanta = (const uint8_t*)copy;
    copy += aligned(kLanes * pitch + 64);
    std::memcpy(copy, tile.scales, there * scale_pitch);
    tile.scales = copy;
    copy += aligned(kLanes * scale_pitch);
    if (tile.zeros) {
        std::memcpy(copy, tile.zeros, there * m.zero_pitch());
        tile.zeros = (const uint8_t*)copy;
    }
    return tile;
}

// Fetches into the cache what the next tile will read, bit by bit while this one is computed: the hardware's own
// prefetchers do not keep up with sixteen rows at a time (measured from memory: 18 GB/s a core instead of 35).
struct Ahead {
    const char *quanta, *scales;
    int64_t scale_size;

    Ahead(const Matrix& m, int64_t n, int64_t end, int64_t then) {
        int64_t next = n + kLanes < end ? n + kLanes : then;
        if (next + kLanes > m.rows) next = n;  // what is there already, which costs nothing
        quanta = (const char*)m.quanta + next * m.pitch();
        scales = (const char*)m.scales + next * m.scale_pitch();
        scale_size = m.half_scales ? 2 : 4;
    }

    template <int kBytes, int kBlocks>
    void step() {  // of the current tile: so many bytes of quanta, and the scales of so many blocks
#pragma GCC unroll 16
        for (int i = 0; i < kBytes; i += 64) fetch(quanta + i);
        quanta += kBytes;
        const int64_t size = kBlocks * kLanes * scale_size;
        for (int64_t i = 0; i < size; i += 64) fetch(scales + i);
        scales += size;
    }
};

// The scales of a tile's `n` <= kLanes blocks from `first` on, as a vector for each block.
void scales_at(const Matrix& m, const Tile& tile, int64_t first, int64_t n, float* out) {
    if (m.half_scales)
        transpose_scales((const uint16_t*)tile.scales + first, m.blocks(), n, out);
    else
        transpose_scales((const float*)tile.scales + first, m.blocks(), n, out);
}

// One row of activations with one tile, straight from the packed quanta.
template <int kBits, int kBlocks, bool kZeros>
Floats tile_with_one(const Matrix& m, const Tile& tile, const Activations& x, Ahead ahead) {
    constexpr int kBytes = 64 * kBits / 8;
    const int64_t pitch = m.pitch(), blocks = m.blocks(), steps = std::max<int64_t>(1, m.block_size / 64);
    const Floats middle = broadcast(float(1 << (kBits - 1)));
    const uint8_t* quanta = tile.quanta;
    const int8_t* q = x.quanta;
    alignas(64) float scales[kLanes * kLanes], zeros[kLanes * kLanes];
    Floats sum = zero_floats();
    for (int64_t first = 0; first < blocks; first += kLanes) {
        const int64_t n = std::min(kLanes, blocks - first);
        scales_at(m, tile, first, n, scales);
        if (kZeros) transpose_zeros(tile.zeros + first * kBits / 8, m.zero_pitch(), n, kBits, zeros);
        for (int64_t b = 0; b < n; b += kBlocks) {
            Ints dots[kBlocks];
            ahead.step<kLanes * kBytes, kBlocks>();
            dot64<kBits, kBlocks>(quanta, pitch, q, dots);
            quanta += kBytes, q += 64;
            for (int64_t s = 1; s < steps; ++s) {
                Ints more[kBlocks];
                ahead.step<kLanes * kBytes, 0>();
                dot64<kBits, kBlocks>(quanta, pitch, q, more);
                dots[0] = add_ints(dots[0], more[0]);
                quanta += kBytes, q += 64;
            }
#pragma GCC unroll 4
            for (int j = 0; j < kBlocks; ++j) {
                if (kBlocks > 1 && b + j >= n) break;
                const int64_t block = first + b + j;
                const Floats zero = kZeros ? load(zeros + kLanes * (b + j)) : middle;
                const Floats dot = negative_fma(zero, broadcast(x.sums[block]), to_floats(dots[j]));
                sum = fma(dot, mul(load(scales + kLanes * (b + j)), broadcast(x.scales[block])), sum);
            }
        }
    }
    return sum;
}

template <int kBits, bool kZeros>
Floats tile_with_one(const Matrix& m, const Tile& tile, const Activations& x, Ahead ahead) {
    if (m.block_size >= 64) return tile_with_one<kBits, 1, kZeros>(m, tile, x, ahead);
    if (m.block_size == 32) return tile_with_one<kBits, 2, kZeros>(m, tile, x, ahead);
    return tile_with_one<8, 4, kZeros>(m, tile, x, ahead);  // 4 bits in blocks of 16 go the other way
}

// kRows rows of activations with one tile, which is `unpacked` whole or, with kFresh, 64 columns at a time on the way.
// The words of a block: `half` from `first`, and as many from `second`.
template <int kBits, int kRows, bool kFresh>
void tile_with_some(const Matrix& m, const Tile& tile, Ahead& ahead, uint8_t* unpacked, const float* scales, const float* zeros, const Activations& x,
                    int64_t row, Floats* sums) {
    const int64_t blocks = m.blocks(), size = m.block_size, half = std::min<int64_t>(size / 8, 8);
    const int64_t steps = std::max<int64_t>(1, size / 64);
    const Floats middle = broadcast(float(1 << (kBits - 1)));
    for (int r = 0; r < kRows; ++r) sums[r] = zero_floats();
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t step = b * size / 64, in_step = b * size % 64;
        const int64_t first = kBits == 4 ? in_step / 8 : in_step / 4;
        const int64_t second = kBits == 4 ? 8 + first : first + half;
        Dots<kBits> dots[kRows], others[kRows];  // two chains a row: one alone would wait for its own last result
        for (int64_t s = step; s < step + steps; ++s) {
            if (kFresh && in_step == 0) {
                ahead.template step<kLanes * 64 * kBits / 8, 1>();
                unpack64<kBits>(tile.quanta + s * 64 * kBits / 8, m.pitch(), unpacked);
            }
            const uint8_t* words = unpacked + (kFresh ? 0 : s * 64 * kLanes);
            const int8_t* q = x.quanta + row * x.padded + s * 64;
            for (int64_t w = 0; w < half; ++w) {
                const auto weights = load_word(words + (first + w) * 4 * kLanes);
#pragma GCC unroll 8
                for (int r = 0; r < kRows; ++r) dots[r].word(weights, q + r * x.padded + 4 * (first + w));
                const auto more = load_word(words + (second + w) * 4 * kLanes);
#pragma GCC unroll 8
                for (int r = 0; r < kRows; ++r) others[r].word(more, q + r * x.padded + 4 * (second + w));
            }
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) dots[r].widen(), others[r].widen();
        }
        const Floats zero = zeros ? load(zeros + kLanes * b) : middle, scale = load(scales + kLanes * b);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const int64_t at = (row + r) * x.blocks + b;
            const Floats dot = negative_fma(zero, broadcast(x.sums[at]), to_floats(add_ints(dots[r].sum, others[r].sum)));
            sums[r] = fma(dot, mul(scale, broadcast(x.scales[at])), sums[r]);
        }
    }
}

// kRows rows of activations with two unpacked tiles: each activation that is read meets twice as many weights.
// `unpacked`, `scales` and `zeros` of the second tile follow those of the first at the given distances.
template <int kBits, int kRows>
void tiles_with_some(const Matrix& m, const uint8_t* unpacked, const float* scales, const float* zeros, const Activations& x,
                     int64_t row, Floats (*sums)[kPairRows]) {
    const int64_t blocks = m.blocks(), size = m.block_size, half = std::min<int64_t>(size / 8, 8);
    const int64_t steps = std::max<int64_t>(1, size / 64), tile_words = x.padded * kLanes, tile_factors = kLanes * blocks;
    const Floats middle = broadcast(float(1 << (kBits - 1)));
    for (int tile = 0; tile < 2; ++tile)
        for (int r = 0; r < kRows; ++r) sums[tile][r] = zero_floats();
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t step = b * size / 64, in_step = b * size % 64;
        const int64_t first = kBits == 4 ? in_step / 8 : in_step / 4, second = kBits == 4 ? 8 + first : first + half;
        Dots<kBits> dots[2][kRows];
        for (int64_t s = step; s < step + steps; ++s) {
            const uint8_t* words = unpacked + s * 64 * kLanes;
            const int8_t* q = x.quanta + row * x.padded + s * 64;
            for (int64_t begin : {first, second}) {
                for (int64_t w = begin; w < begin + half; ++w) {
                    const auto lower = load_word(words + w * 4 * kLanes), upper = load_word(words + tile_words + w * 4 * kLanes);
#pragma GCC unroll 6
                    for (int r = 0; r < kRows; ++r) {
                        dots[0][r].word(lower, q + r * x.padded + 4 * w);
                        dots[1][r].word(upper, q + r * x.padded + 4 * w);
                    }
                }
#pragma GCC unroll 6
                for (int r = 0; r < kRows; ++r) dots[0][r].widen(), dots[1][r].widen();
            }
        }
        for (int tile = 0; tile < 2; ++tile) {
            const float* at_scales = scales + tile * tile_factors + kLanes * b;
            const Floats scale = load(at_scales);
            const Floats zero = zeros ? load(zeros + tile * tile_factors + kLanes * b) : middle;
#pragma GCC unroll 6
            for (int r = 0; r < kRows; ++r) {
                const int64_t at = (row + r) * x.blocks + b;
                const Floats dot = negative_fma(zero, broadcast(x.sums[at]), to_floats(dots[tile][r].sum));
                sums[tile][r] = fma(dot, mul(scale, broadcast(x.scales[at])), sums[tile][r]);
            }
        }
    }
}

// Calls `work` with `rows`, from 1 to kMost, as a constant.
template <int kMost, class Work>
void with_rows(int64_t rows, const Work& work) {
    if constexpr (kMost > 1)
        if (rows < kMost) return with_rows<kMost - 1>(rows, work);
    work(std::integral_constant<int, kMost>());
}

// A tile's quanta unpacked, and its scales and zeros with a vector for each block.
template <int kBits>
void unpack(const Matrix& m, const Tile& tile, Ahead ahead, uint8_t* unpacked) {
    for (int64_t s = 0; s < padded_columns(m) / 64; ++s) {
        ahead.step<kLanes * 64 * kBits / 8, 1>();
        unpack64<kBits>(tile.quanta + s * 64 * kBits / 8, m.pitch(), unpacked + s * 64 * kLanes);
    }
}

template <int kBits>
void unpack_factors(const Matrix& m, const Tile& tile, float* scales, float* zeros) {
    for (int64_t first = 0; first < m.blocks(); first += kLanes) {
        const int64_t count = std::min(kLanes, m.blocks() - first);
        scales_at(m, tile, first, count, scales + first * kLanes);
        if (tile.zeros) transpose_zeros(tile.zeros + first * kBits / 8, m.zero_pitch(), count, kBits, zeros + first * kLanes);
    }
}

template <int kBits>
void multiply_bits(const Matrix& m, const Activations& x, int64_t begin, int64_t end, int64_t then, float* output,
                   int64_t output_pitch, void* scratch) {
    const bool straight = x.rows == 1 && (m.block_size >= 32 || kBits == 8);
    const bool fresh = x.rows <= kActivations;  // no second use of what would be unpacked
    const int64_t blocks = m.blocks();
    for (int64_t n = begin; n < end; n += kLanes) {
        char* free = (char*)scratch;
        const Tile tile = tile_at(m, n, free);
        const int64_t there = std::min(kLanes, m.rows - n);
        float* scales = (float*)free;
        free += 2 * aligned(kLanes * blocks * 4);
        float* zeros = (float*)free;
        free += 2 * aligned(kLanes * blocks * 4);
        if (straight) {
            const Ahead ahead(m, n, end, then);
            const Floats sum = tile.zeros ? tile_with_one<kBits, true>(m, tile, x, ahead) : tile_with_one<kBits, false>(m, tile, x, ahead);
            store_some(output + n, sum, there);
            continue;
        }
        uint8_t* unpacked = (uint8_t*)free;
        const float* z = tile.zeros ? zeros : nullptr;
        unpack_factors<kBits>(m, tile, scales, zeros);
        Ahead ahead(m, n, end, then);
        if (!fresh) unpack<kBits>(m, tile, ahead, unpacked);
        if (kPairRows > 1 && !fresh && n + 2 * kLanes <= std::min(end, m.rows - 1)) {  // the last tile may be a copy
            n += kLanes;
            char* unused = (char*)scratch;
            const Tile next = tile_at(m, n, unused);
            unpack_factors<kBits>(m, next, scales + kLanes * blocks, zeros + kLanes * blocks);
            unpack<kBits>(m, next, Ahead(m, n, end, then), unpacked + x.padded * kLanes);
            for (int64_t row = 0; row < x.rows; row += kPairRows) {
                const int64_t rows = std::min<int64_t>(kPairRows, x.rows - row);
                Floats sums[2][kPairRows];
                with_rows<kPairRows>(rows, [&](auto count) {
                    tiles_with_some<kBits, count()>(m, unpacked, scales, z, x, row, sums);
                });
                for (int64_t r = 0; r < rows; ++r) {
                    store_some(output + (row + r) * output_pitch + n - kLanes, sums[0][r], kLanes);
                    store_some(output + (row + r) * output_pitch + n, sums[1][r], kLanes);
                }
            }
            continue;
        }
        for (int64_t row = 0; row < x.rows; row += kActivations) {
            const int64_t rows = std::min<int64_t>(kActivations, x.rows - row);
            Floats sums[kActivations];
            with_rows<kActivations>(rows, [&](auto count) {
                if (fresh)
                    tile_with_some<kBits, count(), true>(m, tile, ahead, unpacked, scales, z, x, row, sums);
                else
                    tile_with_some<kBits, count(), false>(m, tile, ahead, unpacked, scales, z, x, row, sums);
            });
            for (int64_t r = 0; r < rows; ++r) store_some(output + (row + r) * output_pitch + n, sums[r], there);
        }
    }
}

void multiply(const Matrix& m, const Activations& x, int64_t begin, int64_t end, int64_t next, float* output,
              int64_t output_pitch, void* scratch) {
    (m.bits == 4 ? multiply_bits<4> : multiply_bits<8>)(m, x, begin, end, next, output, output_pitch, scratch);
}

void rotate(const float* x, const float* cosines, const float* sines, int64_t size, bool interleaved, float* out) {
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; ++i) {
        const int64_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : half + i;
        const float u = x[a], v = x[b];
        out[a] = u * cosines[i] - v * sines[i];
        out[b] = v * cosines[i] + u * sines[i];
    }
}

void keep(const float* x, int64_t size, bool half, void* out) {
    if (!half) {
        std::memcpy(out, x, size * 4);
        return;
    }
    const Wide largest = wide(65504.0f);  // of float16: beyond it stands infinity, which attention would turn into NaN
    for (int64_t i = 0; i < size; i += 16)
        wide_store((uint16_t*)out + i, wide_max(wide_mul(largest, wide(-1.0f)), wide_min(largest, wide_load(x + i))));
}

// Softmax of n scores, without the division: exp(score - largest) in place, 0 up to the next 16; returns 1 / their sum.
float exponentials(float* scores, int64_t n) {
    for (int64_t i = n; i % 16; ++i) scores[i] = scores[n - 1];
    Wide most = wide_load(scores);
    for (int64_t j = 16; j < n; j += 16) most = wide_max(most, wide_load(scores + j));
    const Wide peak = wide(-wide_maximum(most));
    Wide total = wide_zero();
    for (int64_t j = 0; j < n; j += 16) {
        wide_store(scores + j, exponential(wide_add(wide_load(scores + j), peak)));
        for (int64_t i = n; i < j + 16; ++i) scores[i] = 0;
        total = wide_add(total, wide_load(scores + j));
    }
    float lanes[16], sum = 0;
    wide_store(lanes, total);
    for (float lane : lanes) sum += lane;
    return 1.0f / sum;
}

// Scores of kTokens tokens from `token` on, `pitch` apart, which read each key together: the score of a key is summed over
// the head's sixteens in order, then over lanes (wide_sums).
template <class T, int kTokens>
void score_some(const Attention& a, const T* keys, int64_t head, int64_t token, float* scores, int64_t pitch) {
    const int64_t n = a.past + token + kTokens, size = a.head_size;
    const float* query = a.query + token * a.query_pitch + head * size;
    for (int64_t j = 0; j < n; j += 16) {
        Wide sums[kTokens][16];
        for (int64_t i = 0; i < 16; ++i) {
            const T* key = keys + std::min(j + i, n - 1) * size;
            Wide sum[kTokens];
            for (int t = 0; t < kTokens; ++t) sum[t] = wide_zero();
            for (int64_t d = 0; d < size; d += 16) {
                const Wide k = wide_load(key + d);
#pragma GCC unroll 4
                for (int t = 0; t < kTokens; ++t) sum[t] = wide_fma(wide_load(query + t * a.query_pitch + d), k, sum[t]);
            }
            for (int t = 0; t < kTokens; ++t) sums[t][i] = sum[t];
        }
        for (int t = 0; t < kTokens; ++t) wide_store(scores + t * pitch + j, wide_mul(wide_sums(sums[t]), wide(a.scale)));
    }
}

// The same scores, of the tokens [begin, end): sixteen keys are widened once for all of them, and a token's sums with
// those stay in registers, where there are so many.
template <class T>
void score_blocks(const Attention& a, const T* keys, int64_t head, int64_t begin, int64_t end, float* scores, int64_t pitch) {
    const int64_t n = a.past + end, size = a.head_size;
    float* block = buffer(t_block, 16 * size + 15);
    block += (64 - (uintptr_t)block % 64) % 64 / 4;  // a load across two lines of the cache would count twice
    for (int64_t j = 0; j < n; j += 16) {
        for (int64_t i = 0; i < 16; ++i) {
            const T* key = keys + std::min(j + i, n - 1) * size;
            for (int64_t d = 0; d < size; d += 16) wide_store(block + 16 * (d + i), wide_load(key + d));
        }
        for (int64_t token = std::max(begin, j - a.past); token < end; ++token) {
            const float* query = a.query + token * a.query_pitch + head * size;
            Wide sums[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) sums[i] = wide_zero();
            for (int64_t d = 0; d < size; d += 16) {
                const Wide q = wide_load(query + d);
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) sums[i] = wide_fma(q, wide_load(block + 16 * (d + i)), sums[i]);
            }
            wide_store(scores + (token - begin) * pitch + j, wide_mul(wide_sums(sums), wide(a.scale)));
        }
    }
}

// Softmax of the scores of kTokens tokens from `token` on, and the values in these shares, added key by key.
template <class T, int kTokens>
void mix_some(const Attention& a, const T* values, int64_t head, int64_t token, float* scores, int64_t pitch) {
    const int64_t least = a.past + token + 1, size = a.head_size;
    Wide inverse[kTokens];
    for (int t = 0; t < kTokens; ++t) inverse[t] = wide(exponentials(scores + t * pitch, least + t));

    constexpr int kColumns = kTokens == 1 ? kWides : std::max(1, kWides / 2);  // sixteens of a value at a time
    for (int64_t d = 0; d < size;) {
        const auto mix = [&](auto columns) {
            constexpr int kCount = columns();
            Wide mixed[kTokens][kCount];
            for (int t = 0; t < kTokens; ++t)
                for (int c = 0; c < kCount; ++c) mixed[t][c] = wide_zero();
            for (int64_t j = 0; j < least; ++j) {
                Wide v[kCount];
#pragma GCC unroll 8
                for (int c = 0; c < kCount; ++c) v[c] = wide_load(values + j * size + d + 16 * c);
#pragma GCC unroll 8
                for (int t = 0; t < kTokens; ++t) {
                    const Wide p = wide(scores[t * pitch + j]);
#pragma GCC unroll 8
                    for (int c = 0; c < kCount; ++c) mixed[t][c] = wide_fma(p, v[c], mixed[t][c]);
                }
            }
            for (int t = 0; t < kTokens; ++t) {
                for (int64_t j = least; j < least + t; ++j)
                    for (int c = 0; c < kCount; ++c)
                        mixed[t][c] = wide_fma(wide(scores[t * pitch + j]), wide_load(values + j * size + d + 16 * c), mixed[t][c]);
                float* out = a.output + (token + t) * a.output_pitch + head * size + d;
                for (int c = 0; c < kCount; ++c) wide_store(out + 16 * c, wide_mul(mixed[t][c], inverse[t]));
            }
            d += 16 * kCount;
        };
        if (size - d >= 16 * kColumns)
            mix(std::integral_constant<int, kColumns>());
        else
            mix(std::integral_constant<int, 1>());
    }
}

// Whatever tokens come together, each token's results are the same bits.
template <class T>
void attend_all(const Attention& a, int64_t head, int64_t group, int64_t begin, int64_t end) {
    const T* keys = (const T*)a.keys + group * a.capacity * a.head_size;
    const T* values = (const T*)a.values + group * a.capacity * a.head_size;
    const int64_t pitch = (a.past + end + 15) / 16 * 16;
    const auto some = [&](auto count, int64_t token) {
        constexpr int kCount = count();
        float* scores = buffer(t_scores, kCount * pitch);
        score_some<T, kCount>(a, keys, head, token, scores, pitch);
        mix_some<T, kCount>(a, values, head, token, scores, pitch);
    };
    int64_t token = begin;
    while (end - token >= kTokens) {
        if (!kScoreBlocks) {
            some(std::integral_constant<int, kTokens>(), token);
            token += kTokens;
            continue;
        }
        // As many as leave their scores room in the cache.
        const int64_t most = std::max<int64_t>(1, kScores / (kTokens * pitch)) * kTokens;
        const int64_t stop = token + std::min(most, (end - token) / kTokens * kTokens);
        float* scores = buffer(t_scores, (stop - token) * pitch);
        score_blocks(a, keys, head, token, stop, scores, pitch);
        for (float* row = scores; token < stop; token += kTokens, row += kTokens * pitch)
            mix_some<T, kTokens>(a, values, head, token, row, pitch);
    }
    for (; token < end; ++token) some(std::integral_constant<int, 1>(), token);
}

void attend(const Attention& a, int64_t head, int64_t group, int64_t begin, int64_t end) {
    (a.half ? attend_all<uint16_t> : attend_all<float>)(a, head, group, begin, end);
}

float softmax(float* scores, int64_t n, float scale) {
    for (int64_t i = n; i % 16; ++i) scores[i] = scores[n - 1];
    for (int64_t j = 0; j < n; j += 16) wide_store(scores + j, wide_mul(wide_load(scores + j), wide(scale)));
    return exponentials(scores, n);
}

double int8_operations(int64_t rounds) {
    Ints sums[12] = {};
    Ints w = set_bytes(1);
    for (int64_t i = 0; i < rounds; ++i) {
        keep_alive(w);  // or the compiler would compute one round
#pragma GCC unroll 12
        for (int j = 0; j < 12; ++j) sums[j] = int8_products(sums[j], w);
    }
    for (int j = 0; j < 12; ++j) keep_alive(sums[j]);
    return double(rounds) * 12 * kInt8Operations;
}

double float_operations(int64_t rounds) {
    Floats sums[12], w = broadcast(1.0f);
    for (int j = 0; j < 12; ++j) sums[j] = zero_floats();
    for (int64_t i = 0; i < rounds; ++i) {
        keep_alive(w);
#pragma GCC unroll 12
        for (int j = 0; j < 12; ++j) sums[j] = fma(w, w, sums[j]);
    }
    for (int j = 0; j < 12; ++j) keep_alive(sums[j]);
    return double(rounds) * 12 * kLanes * 2;
}

const Kernels kTable{HELIUM_NAME, kLanes,     quantize_row, multiply,        scratch_bytes,    rotate,
                     keep,        attend,     softmax,         int8_operations, float_operations, xor_words};

}  // namespace

const Kernels* HELIUM_TABLE() { return HELIUM_SUPPORTED ? &kTable : nullptr; }

}  // namespace helium
