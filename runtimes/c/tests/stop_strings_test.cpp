#include "stop_strings.h"

#include <doctest/doctest.h>

#include "vectors.h"

using namespace helium::core;

TEST_CASE("what is shown, and the match, are those of Python") {
    const Json cases = vectors("stopping.json");
    int count = 0;
    for (auto item = cases.root().begin(); item.valid(); item.next(), ++count) {
        std::vector<std::string> texts;
        const JsonValue stop = item.value().at("stop"), pieces = item.value().at("pieces"), shown = item.value().at("shown");
        for (auto text = stop.begin(); text.valid(); text.next()) texts.push_back(text.value().string());
        StopStrings reader({texts.begin(), texts.end()});
        auto expected = shown.begin();
        CAPTURE(count);
        for (auto piece = pieces.begin(); piece.valid(); piece.next(), expected.next()) {
            std::string out;
            reader.push(piece.value().string(), out);
            REQUIRE(out == expected.value().string());
        }
        std::string out;
        reader.finish(out);
        REQUIRE(out == expected.value().string());
        const JsonValue match = item.value().at("match");
        REQUIRE((reader.match() < 0 ? match.is_null() : match.string() == texts[(size_t)reader.match()]));
    }
    CHECK(count == 84);
}

TEST_CASE("a stop string has at least one character, of UTF-8") {
    CHECK(fails_with(HELIUM_ERROR_INVALID_ARGUMENT, [] { StopStrings({""}); }));
    CHECK(fails_with(HELIUM_ERROR_INVALID_ARGUMENT, [] { StopStrings({"a", "\xc3"}); }));
}

TEST_CASE("a long text is read once") {
    const std::string stop(5000, 'a');
    StopStrings reader({stop});
    std::string out;
    for (int i = 0; i < 200; ++i) reader.push(std::string(4999, 'a') + "b", out);
    CHECK(out.size() == 200 * 5000);
    CHECK(reader.match() < 0);
}
