#include <doctest/doctest.h>

#include "utf8.h"

using namespace helium::core;

namespace {

// `bytes` pushed one by one, or whole.
std::string streamed(std::string_view bytes, bool one_by_one) {
    Utf8Stream stream;
    std::string out;
    if (!one_by_one) {
        stream.push(bytes, out);
        return out;
    }
    for (char c : bytes) stream.push({&c, 1}, out);
    return out;
}

}  // namespace

TEST_CASE("every character is written, read and valid") {
    for (uint32_t code = 0; code < 0x110000; code += code < 0x3000 ? 1 : 37) {
        if (code >= 0xd800 && code < 0xe000) continue;
        std::string text;
        append_utf8(text, code);
        size_t at = 0;
        REQUIRE(is_utf8(text));
        REQUIRE(next_character(text, at) == code);
        REQUIRE(at == text.size());
        REQUIRE(streamed(text, true) == text);
    }
}

TEST_CASE("ill-formed bytes are told, and become one U+FFFD for each maximal part") {
    const std::string r = "\xef\xbf\xbd";
    const struct {
        std::string bytes, text;
    } cases[] = {
        {"\x80", r}, {"\xff", r}, {"\xc0\xaf", r + r}, {"\xc1\x81", r + r}, {"\xe0\x80\xaf", r + r + r}, {"\xed\xa0\x80", r + r + r},
        {"\xf4\x90\x80\x80", r + r + r + r}, {"\xf5\x80", r + r}, {"\xe2\x82" "a", r + "a"}, {"\xf0\x9f\x98" "a", r + "a"},
        {"\xf0\x9f\xf0\x9f\x98\x80", r + "\xf0\x9f\x98\x80"}, {"a\xc3" "b", "a" + r + "b"}, {"\xe2\xc3\xa9", r + "\xc3\xa9"},
    };
    for (const auto& c : cases) {
        CAPTURE(c.text);
        CHECK(!is_utf8(c.bytes));
        CHECK(streamed(c.bytes, false) == c.text);
        CHECK(streamed(c.bytes, true) == c.text);
    }
}

TEST_CASE("half a character waits") {
    Utf8Stream stream;
    std::string out;
    stream.push("a\xe2\x82", out);
    CHECK(out == "a");
    CHECK(stream.is_open());
    stream.push("\xac", out);
    CHECK(out == "a\xe2\x82\xac");
    CHECK(!stream.is_open());
    CHECK(!is_utf8("a\xe2\x82"));
}
