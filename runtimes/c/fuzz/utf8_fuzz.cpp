// Bytes as they stream: whole characters come out, the same however they are cut, and they themselves where they are text.
#include "fuzz.h"
#include "stop_strings.h"
#include "utf8.h"

using namespace helium::core;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view bytes((const char*)data, size);
    Utf8Stream whole, single;
    std::string text, same;
    whole.push(bytes, text);
    for (char c : bytes) {
        single.push({&c, 1}, same);
        if (!is_utf8(same)) __builtin_trap();
    }
    if (text != same || whole.is_open() != single.is_open()) __builtin_trap();
    if (is_utf8(bytes) && text != bytes) __builtin_trap();

    // The first characters as a stop string: what is shown is what stands before it.
    const size_t cut = text.size() < 3 ? text.size() : 3;
    const std::string stop = text.substr(0, cut);
    if (stop.empty() || !is_utf8(stop)) return 0;
    StopStrings reader({stop});
    std::string shown;
    const std::string searched = text.substr(cut) + stop + text;
    reader.push(searched, shown);
    reader.finish(shown);
    if (reader.match() != 0 || shown != searched.substr(0, searched.find(stop))) __builtin_trap();
    return 0;
}
