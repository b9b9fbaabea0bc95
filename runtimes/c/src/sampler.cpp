#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>

#include "error.h"

namespace helium::core {
namespace {

uint64_t mixed(uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

[[noreturn]] void unusable() {
    throw Error(HELIUM_ERROR_LOGITS, "the model gave no usable logits", "NaN, an infinity, or nothing but -inf", "finite numbers",
                "validate the bundle: helium-onnx validate");
}

// The index of the first of the largest; throws where it is not finite, or a NaN is among them.
template <class Real>
size_t usable_peak(const Real* scores, size_t n) {
    size_t best = 0;
    bool sound = n > 0;
    for (size_t i = 0; i < n; ++i) {
        sound = sound && scores[i] == scores[i];
        if (scores[i] > scores[best]) best = i;
    }
    if (!sound || !std::isfinite(scores[best])) unusable();
    return best;
}

void check(const char* name, double value, bool holds, const char* expected) {
    if (!holds) throw Error(HELIUM_ERROR_INVALID_ARGUMENT, std::string(name) + " has a value that it cannot have", std::to_string(value), expected);
}

}  // namespace

void SamplingOptions::check() const {
    const double infinity = std::numeric_limits<double>::infinity();
    core::check("temperature", temperature, temperature >= 0 && temperature < infinity, "a finite number >= 0 (0 is greedy)");
    core::check("top_k", (double)top_k, top_k >= 0, "an integer >= 0 (0 keeps all)");
    core::check("top_p", top_p, top_p > 0 && top_p <= 1, "a number in (0, 1] (1 keeps all)");
    core::check("min_p", min_p, min_p >= 0 && min_p <= 1, "a number in [0, 1] (0 keeps all)");
    core::check("repetition_penalty", repetition_penalty, repetition_penalty > 0 && repetition_penalty < infinity,
                  "a finite number > 0 (1 changes nothing)");
}

double Sampler::next_uniform() {
    state += 0x9E3779B97F4A7C15u;
    return (double)(mixed(state) >> 11) * 0x1p-53;
}

int32_t Sampler::sample(const float* logits, int64_t vocab_size, const std::vector<int32_t>& history, const SamplingOptions& options) {
    const auto n = (size_t)vocab_size;
    const bool penalizes = options.repetition_penalty != 1 && !history.empty();
    if (!penalizes && options.temperature == 0) return (int32_t)usable_peak(logits, n);

    penalized_.assign(logits, logits + n);
    if (penalizes)
        for (int32_t id : history) {  // an id that occurs twice is written twice, with one value
            const double known = logits[id];
            penalized_[(size_t)id] = known < 0 ? known * options.repetition_penalty : known / options.repetition_penalty;
        }
    const size_t best = usable_peak(penalized_.data(), n);
    if (options.temperature == 0) return (int32_t)best;

    double least = -std::numeric_limits<double>::infinity();
    if (options.top_k > 0 && (uint64_t)options.top_k < n) {
        values_ = penalized_;
        const auto kth = values_.begin() + (std::ptrdiff_t)options.top_k - 1;
        std::nth_element(values_.begin(), kth, values_.end(), std::greater<double>());
        least = *kth;
    }
    const double peak = penalized_[best];
    kept_.clear();
    for (size_t id = 0; id < n; ++id)
        if (penalized_[id] >= least) kept_.push_back({std::exp((penalized_[id] - peak) / options.temperature), (int32_t)id});
    if (options.top_p < 1) keep_top_p(options.top_p);
    if (options.min_p > 0)  // shares of the largest probability are the weights themselves
        kept_.erase(std::remove_if(kept_.begin(), kept_.end(), [&](const Candidate& c) { return !(c.weight >= options.min_p); }), kept_.end());
    return draw();
}

// Orders the likeliest of kept_ by (weight descending, id ascending) into ranked_, as many as it takes, and returns the
// first at which their running sum reaches resp. exceeds `mass`, or how many there are. A full sort of a vocabulary takes
// milliseconds; what is at least as large as a threshold is a beginning of the full order.
size_t Sampler::rank(double mass, double total, bool reaching) {
    const double certain = (total - mass) / (double)kept_.size() / 2;
    for (double threshold : {32 * certain, certain, 0.0}) {
        ranked_.clear();
        for (const Candidate& c : kept_)
            if (c.weight > 0 && c.weight >= threshold) ranked_.push_back(c);
        std::stable_sort(ranked_.begin(), ranked_.end(), [](const Candidate& a, const Candidate& b) { return a.weight > b.weight; });
        double running = 0;
        for (size_t i = 0; i < ranked_.size(); ++i) {
            running += ranked_[i].weight;
            if (reaching ? running >= mass : running > mass) return i;
        }
    }
    return ranked_.size();
}

void Sampler::keep_top_p(double top_p) {
    double total = 0;
    for (const Candidate& c : kept_) total += c.weight;
    // A token stays if the likelier ones sum to less than the mass; so the best does.
    const size_t reached = rank(top_p * total, total, true);
    const size_t count = std::min(reached + 1, ranked_.size());
    kept_.assign(ranked_.begin(), ranked_.begin() + (std::ptrdiff_t)count);
    std::sort(kept_.begin(), kept_.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
}

int32_t Sampler::draw() {
    double total = 0;
    for (const Candidate& c : kept_) total += c.weight;
    const size_t chosen = rank(next_uniform() * total, total, false);
    // Summed in another order, the running sum may end one rounding below the target: then it is the last.
    return ranked_[std::min(chosen, ranked_.size() - 1)].id;
}

uint64_t random_seed() {
    std::random_device device;
    return ((uint64_t)device() << 32 | device()) >> 11;
}

}  // namespace helium::core
