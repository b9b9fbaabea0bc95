// tokenizer.json; and where it is one, text through it: the bytes behind the first NUL.
#include "fuzz.h"
#include "tokenizer.h"

using namespace helium::core;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view bytes((const char*)data, size);
    const size_t end = bytes.find('\0');
    const std::string json(bytes.substr(0, end));
    const std::string_view text = end == std::string_view::npos ? "a \xf0\x9f\x91\x8d</s>\n" : bytes.substr(end + 1);
    for (int64_t vocab_size = 1; vocab_size < 12; ++vocab_size)
        answered([&] {
            const Tokenizer tokenizer(json, vocab_size, -1, {0});
            for (uint32_t flags = 0; flags < 8; ++flags)
                answered([&] {
                    const std::vector<int32_t> ids = tokenizer.encode(text, flags);
                    for (int32_t id : ids)
                        if (id < 0 || id >= vocab_size) __builtin_trap();
                    if (!is_utf8(tokenizer.decode(ids.data(), ids.size(), flags))) __builtin_trap();
                });
        });
    return 0;
}
