#include "tokenizer.h"

#include <doctest/doctest.h>

#include "sha256.h"
#include "vectors.h"

using namespace helium::core;

namespace {

std::string sample_json() { return read_file(std::string(HELIUM_REPOSITORY) + "/samples/helium-docs-7m/tokenizer.json", 1u << 30, HELIUM_ERROR_IO); }

const Tokenizer& sample() {
    static const Tokenizer tokenizer(sample_json(), 6000, 1, {2});
    return tokenizer;
}

std::vector<int32_t> ids_of(const JsonValue& list) {
    std::vector<int32_t> ids;
    for (auto item = list.begin(); item.valid(); item.next()) ids.push_back((int32_t)item.value().integer());
    return ids;
}

// The sample's file with one text replaced.
std::string with(const std::string& from, const std::string& to) {
    std::string text = sample_json();
    const size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    return text.replace(at, from.size(), to);
}

// A tokenizer of few pieces.
std::string small(const std::string& vocab, const std::string& more = "") {
    return R"({"model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": )" + vocab + "}" + more + "}";
}

}  // namespace

TEST_CASE("ids are those of the tokenizers library") {
    const Json document = vectors("tokenizer.json");
    const JsonValue texts = document.root().at("texts"), special = document.root().at("special");
    for (auto item = texts.begin(); item.valid(); item.next()) {
        CAPTURE(item.value().at("text").raw());
        REQUIRE(sample().encode(item.value().at("text").string(), 0) == ids_of(item.value().at("ids")));
    }
    for (auto item = special.begin(); item.valid(); item.next()) {
        CAPTURE(item.value().at("text").raw());
        REQUIRE(sample().encode(item.value().at("text").string(), HELIUM_ENCODE_PARSE_SPECIAL) == ids_of(item.value().at("ids")));
    }
}

TEST_CASE("ids of whole pages are those of the library") {
    const Json document = vectors("tokenizer.json");
    const JsonValue lines = document.root().at("lines");
    const std::string pages = read_file(std::string(HELIUM_REPOSITORY) + "/benchmarks/data/valid.jsonl", 1u << 30, HELIUM_ERROR_IO);
    size_t at = 0;
    for (auto item = lines.begin(); item.valid(); item.next()) {
        const size_t end = pages.find('\n', at);
        const Json page(pages.substr(at, end - at), "page", HELIUM_ERROR_IO);
        at = end + 1;
        const std::vector<int32_t> ids = sample().encode(page.root().at("text").string(), 0);
        REQUIRE(sha256_hex(ids.data(), ids.size() * 4) == item.value().string());
    }
    CHECK(lines.size() > 100);
}

TEST_CASE("streamed text is that of Python") {
    const Json document = vectors("tokenizer.json");
    const JsonValue streams = document.root().at("streams");
    for (auto item = streams.begin(); item.valid(); item.next()) {
        TextStream stream(sample(), ids_of(item.value().at("prompt_ids")));
        const std::vector<int32_t> ids = ids_of(item.value().at("ids"));
        const JsonValue pieces = item.value().at("pieces");
        auto piece = pieces.begin();
        for (int32_t id : ids) {
            std::string out;
            stream.push(id, out);
            REQUIRE(out == piece.value().string());
            piece.next();
        }
    }
}

TEST_CASE("a text in two parts is that of one") {
    const std::string text = "Click the button, then save";
    for (size_t cut : {5, 9, 16}) {  // before a space: where a text can be cut without cutting a piece
        std::vector<int32_t> ids = sample().encode(text.substr(0, cut), 0);
        const std::vector<int32_t> rest = sample().encode(text.substr(cut), HELIUM_ENCODE_CONTINUE);
        ids.insert(ids.end(), rest.begin(), rest.end());
        CHECK(sample().decode(ids.data(), ids.size(), 0) == text);
    }
    CHECK(sample().encode("a", HELIUM_ENCODE_CONTINUE) != sample().encode("a", HELIUM_ENCODE_NO_BOS));
    CHECK(sample().encode("", HELIUM_ENCODE_CONTINUE).empty());
}

TEST_CASE("decoding gives the text back, and U+FFFD for half a character") {
    for (const std::string text : {"Bonjour, ça va ?", "\xe6\x97\xa5\xe6\x9c\xac x", "\xf0\x9f\x91\x8d"}) {
        const std::vector<int32_t> ids = sample().encode(text, 0);
        CHECK(sample().decode(ids.data(), ids.size(), 0) == text);
        CHECK(sample().decode(ids.data(), ids.size(), HELIUM_ENCODE_CONTINUE) == " " + text);
    }
    const std::vector<int32_t> ids = sample().encode("\xf0\x9f\x91\x8d", 0);
    CHECK(sample().decode(ids.data(), ids.size() - 1, 0) == "\xef\xbf\xbd");
    const int32_t outside = 6000;
    CHECK(fails_with(HELIUM_ERROR_TOKENIZER, [&] { sample().decode(&outside, 1, 0); }));
}

TEST_CASE("text that is no UTF-8 is refused") {
    CHECK(fails_with(HELIUM_ERROR_PROMPT, [] { sample().encode("a\xff", 0); }));
    CHECK(fails_with(HELIUM_ERROR_PROMPT, [] { sample().encode("\xed\xa0\x80", 0); }));
}

TEST_CASE("files that are none of Helium's, or malformed, are refused") {
    const auto refused = [](const std::string& json, int64_t vocab_size = 6000) {
        return fails_with(HELIUM_ERROR_TOKENIZER, [&] { Tokenizer(json, vocab_size, 1, {2}); });
    };
    CHECK(!refused(sample_json()));
    CHECK(refused(sample_json(), 5999));
    CHECK(refused(""));
    CHECK(refused("{}"));
    CHECK(refused("[]"));
    CHECK(refused("\"model\""));
    CHECK(refused(sample_json().substr(0, 100000)));
    CHECK(refused(with("\"Unigram\"", "\"BPE\"")));
    CHECK(refused(with("\"unk_id\"", "\"unk\"")));
    CHECK(refused(small("[]"), 0));
    CHECK(refused(small(R"([["a", 0.0], ["a", -1.0]])"), 2));
    CHECK(refused(small(R"([["a", "0"]])"), 1));
    CHECK(refused(small(R"([["a"]])"), 1));
    CHECK(refused(small(R"([["", 0.0]])"), 1));
    CHECK(refused(small(R"([["a", 1e999]])"), 1));
    CHECK(refused(small("[[\"" + std::string(2000, 'a') + "\", 0.0]]"), 1));
    CHECK(!refused(small(R"([["a", 0.0], ["b", -1.0], ["c", -1]])"), 3));
    CHECK(refused(small(R"([["a", 0.0], ["b", 0]])", R"(, "added_tokens": [{"id": 1, "content": "x", "special": true}])"), 2));
    CHECK(refused(small(R"([["a", 0.0], ["b", 0]])", R"(, "added_tokens": [{"id": 2, "content": "a", "special": true}])"), 3));
    CHECK(refused(small(R"([["a", 0.0], ["b", 0]])", R"(, "added_tokens": [{"id": 3, "content": "x", "special": true}])"), 3));
    CHECK(refused(small(R"([["a", 0.0], ["b", 0]])", R"(, "added_tokens": [{"id": -1, "content": "x", "special": true}])"), 3));
    CHECK(!refused(small(R"([["a", 0.0], ["b", 0]])", R"(, "added_tokens": [{"id": 2, "content": "x", "special": true}])"), 3));
    CHECK(refused(small(R"([["a", 0.0], ["b", 0]])", R"(, "normalizer": {"type": "NFKC"})"), 2));
    CHECK(refused(small(R"([["a", 0.0], ["b", 0]])", R"(, "pre_tokenizer": {"type": "Whitespace"})"), 2));
    CHECK(refused(small(R"([["a", 0.0], ["b", 0]])", R"(, "decoder": {"type": "WordPiece"})"), 2));
}
