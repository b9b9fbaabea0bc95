#include "sampler.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "vectors.h"

using namespace helium::core;

namespace {

uint64_t next_uint64(uint64_t& state) {
    state += 0x9E3779B97F4A7C15u;
    uint64_t x = state;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

// As `logits` of tests/vectors/write.py.
std::vector<float> logits(uint64_t seed, const JsonValue& shape) {
    std::vector<float> values((size_t)shape.at("size").integer());
    const double scale = shape.at("scale").number();
    const auto levels = (double)shape.at("levels").integer();
    const int64_t masked = shape.at("masked").integer();
    for (float& value : values) {
        double share = (double)(next_uint64(seed) >> 40) * 0x1p-24;
        if (levels > 0) share = std::floor(share * levels) / levels;
        value = (float)((share - 0.5) * scale);
    }
    for (size_t i = 0; masked && i < values.size(); i += (size_t)masked) values[i] = -std::numeric_limits<float>::infinity();
    return values;
}

}  // namespace

TEST_CASE("tokens are those of Python") {
    const Json cases = vectors("sampling.json");
    int count = 0;
    for (auto item = cases.root().begin(); item.valid(); item.next(), ++count) {
        const JsonValue options = item.value().at("options"), shape = item.value().at("logits"), tokens = item.value().at("tokens");
        const auto number = [&](const char* key, double otherwise) {
            const auto found = options.find(key);
            return found ? found->number() : otherwise;
        };
        SamplingOptions asked{number("temperature", 0), (int64_t)number("top_k", 0), number("top_p", 1), number("min_p", 0), number("repetition_penalty", 1)};
        Sampler sampler;
        sampler.begin(std::stoull(options.at("seed").string()));
        std::vector<int32_t> history;
        const JsonValue prompt = item.value().at("prompt_ids");
        for (auto id = prompt.begin(); id.valid(); id.next()) history.push_back((int32_t)id.value().integer());
        uint64_t seed = (uint64_t)shape.at("seed").integer();
        for (auto token = tokens.begin(); token.valid(); token.next()) {
            const std::vector<float> scores = logits(seed++, shape);
            const int32_t chosen = sampler.sample(scores.data(), (int64_t)scores.size(), history, asked);
            CAPTURE(count);
            REQUIRE(chosen == token.value().integer());
            history.push_back(chosen);
        }
    }
    CHECK(count == 75);
}

TEST_CASE("logits that are no numbers are an error, single -inf are not") {
    const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
    for (double temperature : {0.0, 1.0}) {
        SamplingOptions options;
        options.temperature = temperature;
        Sampler sampler;
        sampler.begin(1);
        for (const std::vector<float>& scores : std::vector<std::vector<float>>{{1, nan, 2}, {nan}, {1, inf}, {-inf, -inf}}) {
            CHECK(fails_with(HELIUM_ERROR_LOGITS, [&] { sampler.sample(scores.data(), (int64_t)scores.size(), {}, options); }));
        }
        const std::vector<float> masked{-inf, 3, -inf};
        CHECK(sampler.sample(masked.data(), 3, {}, options) == 1);
    }
}

TEST_CASE("options out of range are refused") {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (const SamplingOptions& options : {SamplingOptions{-1}, SamplingOptions{nan}, SamplingOptions{1, -1}, SamplingOptions{1, 0, 0}, SamplingOptions{1, 0, 1.1},
                                           SamplingOptions{1, 0, nan}, SamplingOptions{1, 0, 1, -0.1}, SamplingOptions{1, 0, 1, 0, 0}, SamplingOptions{1, 0, 1, 0, nan}})
        CHECK(fails_with(HELIUM_ERROR_INVALID_ARGUMENT, [&] { options.check(); }));
}
