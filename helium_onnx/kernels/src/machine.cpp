// What this machine can do, measured: the ceilings that `helium-onnx bench` compares with.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels.h"

namespace helium {

const Kernels* best_kernels();

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// `work(thread)` on each of `threads`, timed from the first's start to the last's end.
template <class Work>
double timed(int threads, const Work& work) {
    std::vector<std::thread> running;
    const double start = seconds();
    for (int t = 0; t < threads; ++t) running.emplace_back([&work, t] { work(t); });
    for (std::thread& thread : running) thread.join();
    return seconds() - start;
}

template <class Operations>
double rate(int threads, const Operations& operations) {
    std::vector<double> counted(threads);
    const double elapsed = timed(threads, [&](int t) { counted[t] = operations(4'000'000); });
    double all = 0;
    for (double n : counted) all += n;
    return all / elapsed / 1e9;
}

}  // namespace
}  // namespace helium

#define HELIUM_EXPORT __attribute__((visibility("default")))

extern "C" {

// Reads a buffer of `bytes` (a multiple of 256 a thread; much larger than the caches) once with all threads. 0: no memory.
HELIUM_EXPORT double helium_read_gigabytes_per_second(int threads, int64_t bytes) {
    const int64_t each = bytes / threads / 256 * 256;
    auto* data = (uint8_t*)std::aligned_alloc(4096, (each * threads + 4095) / 4096 * 4096);
    if (!data) return 0;
    std::vector<uint64_t> sums(threads);
    helium::timed(threads, [&](int t) { std::memset(data + t * each, t, each); });
    const double elapsed =
        helium::timed(threads, [&](int t) { sums[t] = helium::best_kernels()->read(data + t * each, each); });
    volatile uint64_t sink = 0;
    for (uint64_t sum : sums) sink = sink + sum;
    std::free(data);
    return each * threads / elapsed / 1e9;
}

HELIUM_EXPORT double helium_int8_gigaops(int threads) { return helium::rate(threads, helium::best_kernels()->int8_operations); }
HELIUM_EXPORT double helium_fp32_gigaflops(int threads) { return helium::rate(threads, helium::best_kernels()->float_operations); }

}  // extern "C"
