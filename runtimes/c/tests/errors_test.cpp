#include <cstring>

#include "bundle.h"

using namespace helium;
namespace fs = std::filesystem;

namespace {

helium_status open_status(const fs::path& path, const ModelOptions& options = {}) {
    return status_of([&] { Model(path.string(), options); });
}

// A number that the enumeration does not have, as a caller in C may give it.
template <class Enumeration>
void put(Enumeration& value, int number) {
    std::memcpy(&value, &number, sizeof value);
}

fs::path copied(const TemporaryFolder& folder) {
    const fs::path to = folder.path / "bundle";
    fs::copy(bundle_path(), to, fs::copy_options::recursive);
    return to;
}

void replace(const fs::path& file, const std::string& from, const std::string& to) {
    std::string text = read(file);
    const size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    write(file, text.replace(at, from.size(), to));
}

}  // namespace

TEST_CASE("what is no bundle is said to be none") {
    const TemporaryFolder folder;
    CHECK(open_status(folder.path / "nothing") == HELIUM_ERROR_BUNDLE);
    CHECK(open_status(folder.path) == HELIUM_ERROR_BUNDLE);
    CHECK(std::strstr(helium_error_text(), "helium.json") != nullptr);
    write(folder.path / "file", "x");
    CHECK(open_status(folder.path / "file") == HELIUM_ERROR_BUNDLE);
    write(folder.path / "helium.json", "{");
    CHECK(open_status(folder.path) == HELIUM_ERROR_INTEGRITY);
    write(folder.path / "helium.json", "[]");
    CHECK(open_status(folder.path) == HELIUM_ERROR_BUNDLE);
    write(folder.path / "helium.json", "{\"format_version\": 99}");
    CHECK(open_status(folder.path) == HELIUM_ERROR_FORMAT_VERSION);
    write(folder.path / "helium.json", "{\"format_version\": 1}");
    CHECK(open_status(folder.path) == HELIUM_ERROR_INTEGRITY);
}

TEST_CASE("a changed bundle is told from a whole one") {
    SUBCASE("manifest") {
        const TemporaryFolder folder;
        const fs::path bundle = copied(folder);
        replace(bundle / "helium.json", "\"text-generation\"", "\"text-generatiom\"");
        CHECK(open_status(bundle) == HELIUM_ERROR_INTEGRITY);
    }
    SUBCASE("weights cut off") {
        const TemporaryFolder folder;
        const fs::path bundle = copied(folder), weights = bundle / "onnx" / "model.onnx_data";
        fs::resize_file(weights, fs::file_size(weights) - 1);
        CHECK(open_status(bundle) == HELIUM_ERROR_INTEGRITY);
        fs::remove(weights);
        CHECK(open_status(bundle) == HELIUM_ERROR_INTEGRITY);
    }
    SUBCASE("a bit of the weights: when it is asked for") {
        const TemporaryFolder folder;
        const fs::path bundle = copied(folder), weights = bundle / "onnx" / "model.onnx_data";
        std::string bytes = read(weights);
        bytes[bytes.size() / 2] = (char)(bytes[bytes.size() / 2] ^ 1);
        write(weights, bytes);
        ModelOptions options;
        options.check_digests = 1;
        CHECK(open_status(bundle, options) == HELIUM_ERROR_INTEGRITY);
        CHECK(open_status(bundle) == HELIUM_OK);
    }
    SUBCASE("a bit of a graph or of the tokenizer: always") {
        for (const char* name : {"onnx/prefill.onnx", "tokenizer.json"}) {
            const TemporaryFolder folder;
            const fs::path bundle = copied(folder);
            std::string bytes = read(bundle / name);
            bytes[bytes.size() / 2] = (char)(bytes[bytes.size() / 2] ^ 1);
            write(bundle / name, bytes);
            CHECK(open_status(bundle) == HELIUM_ERROR_INTEGRITY);
        }
    }
    SUBCASE("a link out of the folder") {
        const TemporaryFolder folder;
        const fs::path bundle = copied(folder);
        fs::rename(bundle / "tokenizer.json", folder.path / "elsewhere.json");
        fs::create_symlink(folder.path / "elsewhere.json", bundle / "tokenizer.json");
        CHECK(open_status(bundle) == HELIUM_ERROR_INTEGRITY);
    }
}

TEST_CASE("options out of range are refused") {
    for (auto change : {+[](ModelOptions& o) { o.threads = -1; }, +[](ModelOptions& o) { o.threads = 5000; }, +[](ModelOptions& o) { o.context_length = 1; },
                        +[](ModelOptions& o) { o.context_length = 1 << 30; }, +[](ModelOptions& o) { put(o.kernels, 9); },
                        +[](ModelOptions& o) { o.struct_size = 0; }, +[](ModelOptions& o) { o.memory_limit = -5; }}) {
        ModelOptions options;
        change(options);
        CHECK(open_status(bundle_path(), options) == HELIUM_ERROR_INVALID_ARGUMENT);
    }
    for (auto change : {+[](Request& r) { r.temperature = -1; }, +[](Request& r) { r.top_p = 2; }, +[](Request& r) { r.max_new_tokens = -1; },
                        +[](Request& r) { r.stop = {""}; }}) {
        Conversation conversation(model());
        Request asked = request("a");
        change(asked);
        CHECK(status_of([&] { conversation.generate(asked); }) == HELIUM_ERROR_INVALID_ARGUMENT);
        CHECK(conversation.ids().empty());
    }
    Conversation conversation(model());
    CHECK(status_of([&] { conversation.generate(Request()); }) == HELIUM_ERROR_PROMPT);
    CHECK(status_of([&] { conversation.generate(request("\xff")); }) == HELIUM_ERROR_PROMPT);
    CHECK(std::strstr(helium_error_text(), "bytes at 0") != nullptr);
    CHECK(status_of([&] { model().encode("a", 8); }) == HELIUM_ERROR_INVALID_ARGUMENT);
    Request bad = request("a");
    bad.stop = {"\xff"};
    CHECK(status_of([&] { conversation.generate(bad); }) == HELIUM_ERROR_INVALID_ARGUMENT);
    CHECK(std::strstr(helium_error_text(), "'?'") != nullptr);
    Request outside;
    outside.prompt_ids = {1, 6000};
    CHECK(status_of([&] { conversation.generate(outside); }) == HELIUM_ERROR_PROMPT);
    ConversationOptions longer;
    longer.context_length = 1 << 20;
    CHECK(status_of([&] { Conversation(model(), longer); }) == HELIUM_ERROR_INVALID_ARGUMENT);
}

TEST_CASE("NULL is refused, and closed handles are") {
    helium_model* none = nullptr;
    size_t count = 0;
    int32_t id = 0;
    CHECK(helium_model_open(nullptr, nullptr, &none) == HELIUM_ERROR_INVALID_ARGUMENT);
    CHECK(helium_model_open("x", nullptr, nullptr) == HELIUM_ERROR_INVALID_ARGUMENT);
    CHECK(helium_model_get_info(model().handle(), nullptr) == HELIUM_ERROR_INVALID_ARGUMENT);
    CHECK(helium_encode(model().handle(), nullptr, 0, 0, &id, 1, &count) == HELIUM_ERROR_INVALID_ARGUMENT);
    CHECK(helium_encode(model().handle(), "a b c", HELIUM_TO_NUL, 0, nullptr, 1, &count) == HELIUM_ERROR_INVALID_ARGUMENT);
    CHECK(helium_encode(model().handle(), "a b c", HELIUM_TO_NUL, 0, &id, 1, &count) == HELIUM_OK);
    CHECK(count > 1);
    CHECK(helium_encode(nullptr, "a", 1, 0, &id, 1, &count) == HELIUM_ERROR_CLOSED);
    CHECK(helium_generate(nullptr, nullptr, nullptr) == HELIUM_ERROR_INVALID_ARGUMENT);
    CHECK(helium_cancel((helium_conversation*)model().handle()) == HELIUM_ERROR_CLOSED);  // of another kind
    helium_model_close(nullptr);
    helium_conversation_close(nullptr);

    auto conversation = std::make_unique<Conversation>(model());
    conversation->close();
    CHECK(status_of([&] { conversation->generate(request("a")); }) == HELIUM_ERROR_CLOSED);
    CHECK(status_of([&] { conversation->cancel(); }) == HELIUM_ERROR_CLOSED);
    conversation->close();
    CHECK(std::string(helium_status_name(HELIUM_ERROR_CLOSED)) == "HELIUM_ERROR_CLOSED");
    CHECK(helium_api_version() == HELIUM_API_VERSION);
}

TEST_CASE("a conversation outlives its model's handle") {
    auto loaded = std::make_unique<Model>(bundle_path());
    Conversation conversation(*loaded), other(model());
    loaded.reset();
    CHECK(generate(conversation, request("Save")).ids == generate(other, request("Save")).ids);
}

TEST_CASE("a plan over the limit is refused before anything is loaded") {
    ModelOptions options;
    options.memory_limit = 1000000;
    CHECK(open_status(bundle_path(), options) == HELIUM_ERROR_OUT_OF_MEMORY);
    CHECK(std::strstr(helium_error_text(), "at most 1 MB") != nullptr);
    options.memory_limit = HELIUM_MEMORY_AVAILABLE;
    CHECK(open_status(bundle_path(), options) == HELIUM_OK);
}

TEST_CASE("ONNX Runtime that is not there is said to be missing") {
    ModelOptions options;
    options.onnxruntime = "/nowhere/libonnxruntime.so";
    CHECK(open_status(bundle_path(), options) == HELIUM_ERROR_RUNTIME);
    CHECK(std::strstr(helium_error_text(), "/nowhere/libonnxruntime.so") != nullptr);
    options.onnxruntime = "libm.so.6";
    CHECK(open_status(bundle_path(), options) == HELIUM_ERROR_RUNTIME);
}

TEST_CASE("an older caller's structs are read as far as they go") {
    helium_request asked;
    helium_request_init(&asked);
    asked.prompt = "Save";
    asked.max_new_tokens = 3;
    asked.struct_size = offsetof(helium_request, temperature);
    asked.temperature = -1;  // behind the caller's end
    helium_result result;
    result.struct_size = offsetof(helium_result, seed);
    result.seed = 77;
    Conversation conversation(model());
    helium_conversation* handle = nullptr;
    REQUIRE(helium_conversation_open(model().handle(), nullptr, &handle) == HELIUM_OK);
    CHECK(helium_generate(handle, &asked, &result) == HELIUM_OK);
    CHECK(result.new_tokens == 3);
    CHECK(result.seed == 77);
    CHECK(result.struct_size == offsetof(helium_result, seed));
    helium_conversation_close(handle);
}
