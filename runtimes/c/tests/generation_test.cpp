// The tokens of tests/vectors/generation.json, which every runtime gives; of float32 weights: HELIUM_BUNDLE_FP32.
#include "bundle.h"
#include "json.h"
#include "vectors.h"

using namespace helium;

TEST_CASE("tokens and texts are those of every runtime" * doctest::skip(std::getenv("HELIUM_BUNDLE_FP32") == nullptr)) {
    const Model fp32(std::getenv("HELIUM_BUNDLE_FP32"));
    const core::Json document = vectors("generation.json");
    for (auto item = document.root().begin(); item.valid(); item.next()) {
        const core::JsonValue options = item.value().at("options");
        Request asked = request(item.value().at("prompt").string(), item.value().at("max_new_tokens").integer());
        const auto number = [&](const char* key, auto& value) {
            if (const auto found = options.find(key)) value = (std::decay_t<decltype(value)>)found->number();
        };
        number("temperature", asked.temperature);
        number("top_k", asked.top_k);
        number("top_p", asked.top_p);
        number("min_p", asked.min_p);
        number("repetition_penalty", asked.repetition_penalty);
        if (const auto seed = options.find("seed")) asked.seed = std::stoull(seed->string());
        const core::JsonValue stop = item.value().at("stop");
        for (auto text = stop.begin(); text.valid(); text.next()) asked.stop.push_back(text.value().string());
        Conversation conversation(fp32);
        const Generated generated = generate(conversation, asked);
        std::vector<int32_t> ids;
        const core::JsonValue expected = item.value().at("ids");
        for (auto id = expected.begin(); id.valid(); id.next()) ids.push_back((int32_t)id.value().integer());
        CAPTURE(*asked.prompt);
        CHECK(generated.ids == ids);
        CHECK(generated.text == item.value().at("text").string());
        const char* const finishes[] = {"length", "eos", "stop"};
        CHECK(finishes[generated.result.finish] == item.value().at("finish_reason").string());
    }
}
