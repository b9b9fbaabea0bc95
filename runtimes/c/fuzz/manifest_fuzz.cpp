// helium.json, whatever its digest says.
#include "bundle.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    return answered([&] { helium::core::Bundle::parse({(const char*)data, size}, "helium.json", false); });
}
