#include <doctest/doctest.h>

#include <clocale>

#include "json.h"
#include "number.h"
#include "vectors.h"

using namespace helium::core;

namespace {

Json parse(std::string text) { return Json(std::move(text), "test", HELIUM_ERROR_BUNDLE); }

std::string canonical(const std::string& text) {
    const Json document = parse(text);
    std::string out;
    document.root().canonical(out);
    return out;
}

bool is_json(const std::string& text) {
    return !fails_with(HELIUM_ERROR_BUNDLE, [&] { parse(text); });
}

}  // namespace

TEST_CASE("values are read where they stand") {
    const Json document = parse(R"( {"a": [1, -2.5e3, "x\n\u00e9\ud83d\ude00\/"], "b": {"c": null}, "d": true, "e": []} )");
    const JsonValue root = document.root();
    auto item = root.at("a").begin();
    CHECK(item.value().integer() == 1);
    item.next();
    CHECK(item.value().number() == -2500.0);
    item.next();
    CHECK(item.value().string() == "x\n\xc3\xa9\xf0\x9f\x98\x80/");
    item.next();
    CHECK(!item.valid());
    CHECK(root.at("b").at("c").is_null());
    CHECK(root.at("d").boolean());
    CHECK(root.at("e").size() == 0);
    CHECK(!root.at("e").begin().valid());
    CHECK(!root.find("z"));
    CHECK(root.size() == 4);
}

TEST_CASE("keys are found whatever their spelling") {
    CHECK(parse(R"({"\u0061b": 7})").root().at("ab").integer() == 7);
}

TEST_CASE("what is no JSON is refused") {
    for (const char* text : {"", " ", "{", "[", "[1", "[1,]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "01", "1.", ".5", "+1", "1e", "--1", "-", "nul", "nulll",
                             "true false", "\"", "\"\\x\"", "\"\\u12g4\"", "\"\\u12\"", "\"\n\"", "NaN", "Infinity", "'a'", "[1 2]", "{\"a\" 1}", "\xff", "\"\xc3\""}) {
        CAPTURE(text);
        CHECK(!is_json(text));
    }
    CHECK(!is_json(std::string("1\0", 2)));
    CHECK(is_json(std::string(60, '[') + std::string(60, ']')));
    CHECK(!is_json(std::string(70, '[') + std::string(70, ']')));
    CHECK(!is_json(std::string(10'000'000, '[')));
}

TEST_CASE("lone surrogates and numbers out of range are errors when they are read") {
    const auto refused = [](const char* text, auto read) {
        return fails_with(HELIUM_ERROR_BUNDLE, [&] {
            const Json document = parse(text);
            read(document.root());
        });
    };
    const auto string = [](const JsonValue& v) { v.string(); };
    const auto integer = [](const JsonValue& v) { v.integer(); };
    CHECK(refused(R"("\ud800")", string));
    CHECK(refused(R"("\udc00x")", string));
    CHECK(refused(R"("\ud800\u0041")", string));
    CHECK(refused("9223372036854775808", integer));
    CHECK(refused("1.0", integer));
    CHECK(refused("1e3", integer));
    CHECK(refused("\"1\"", integer));
    CHECK(refused("1e999", [](const JsonValue& v) { v.number(); }));
    CHECK(parse("-9223372036854775808").root().integer() == INT64_MIN);
}

TEST_CASE("canonical JSON is that of Python's json.dumps") {
    CHECK(canonical(R"({"b": [1, 2.50, {}], "a": "\u00e9\"\\\u0001\n\u007f", "\ud83d\ude00": null, "\uffff": []})") ==
          "{\"a\":\"\xc3\xa9\\\"\\\\\\u0001\\n\x7f\",\"b\":[1,2.50,{}],\"\xef\xbf\xbf\":[],\"\xf0\x9f\x98\x80\":null}");
    CHECK(fails_with(HELIUM_ERROR_BUNDLE, [] { canonical(R"({"a": 1, "\u0061": 2})"); }));
}

TEST_CASE("numbers do not depend on the locale") {
    const char* before = std::setlocale(LC_ALL, "de_DE.UTF-8");
    CHECK(parse_double("1.5") == 1.5);
    CHECK(parse_double("-9.999999999999999e-5") == -9.999999999999999e-5);
    CHECK(parse_double("1" + std::string(100, '0')) == 1e100);
    if (before) std::setlocale(LC_ALL, "C");
}
