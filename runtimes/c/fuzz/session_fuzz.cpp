// A saved conversation.
#include "fuzz.h"
#include "saved_conversation.h"

using namespace helium::core;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const std::vector<TensorSpec> specs{{"past_key_values.0.key", "float16", {-1, 1, -1, 2}}, {"past_key_values.0.value", "float16", {-1, 1, -1, 2}}};
    return answered([&] {
        const SavedConversation saved({(const char*)data, size}, "session", {specs, 100, "b", "native"});
        if (saved.held > (int64_t)saved.state.ids.size()) __builtin_trap();
    });
}
