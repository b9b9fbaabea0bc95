#include <doctest/doctest.h>

#include "sha256.h"

using namespace helium::core;

TEST_CASE("digests of FIPS 180's examples") {
    const auto of = [](const std::string& text) { return sha256_hex(text.data(), text.size()); };
    CHECK(of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(of(std::string(1'000'000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("pieces give the digest of the whole, wherever it is cut") {
    std::string text;
    for (int i = 0; i < 300; ++i) text += (char)(i * 7);
    const std::string whole = sha256_hex(text.data(), text.size());
    for (size_t first = 0; first <= 140; ++first)
        for (size_t second : {0, 1, 55, 56, 63, 64, 65, 128}) {
            Sha256 hash;
            hash.update(text.data(), first);
            hash.update(text.data() + first, second);
            hash.update(text.data() + first + second, text.size() - first - second);
            REQUIRE(hash.hex() == whole);
        }
}
