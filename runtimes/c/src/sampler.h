// From logits to a token: the arithmetic of helium_onnx/generation/sampling.py, whose docstring states it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace helium::core {

struct SamplingOptions {
    double temperature = 0;
    int64_t top_k = 0;
    double top_p = 1, min_p = 0, repetition_penalty = 1;

    void check() const;  // throws INVALID_ARGUMENT
};

class Sampler {
   public:
    uint64_t seed = 0;   // that the stream was begun with
    uint64_t state = 0;  // of SplitMix64

    void begin(uint64_t with) { seed = state = with; }
    double next_uniform();  // in [0, 1)

    // The next token of `vocab_size` logits; `history` is the prompt and what was generated so far. Throws LOGITS.
    int32_t sample(const float* logits, int64_t vocab_size, const std::vector<int32_t>& history, const SamplingOptions& options);

   private:
    struct Candidate {
        double weight;
        int32_t id;
    };
    void keep_top_p(double top_p);
    int32_t draw();
    size_t rank(double mass, double total, bool reaching);

    std::vector<double> penalized_, values_;
    std::vector<Candidate> kept_, ranked_;
};

uint64_t random_seed();  // of the system, below 2^53 as Python's

}  // namespace helium::core
