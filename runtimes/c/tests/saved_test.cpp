#include <cstring>

#include "bundle.h"

using namespace helium;
namespace fs = std::filesystem;

namespace {

Request going_on(double temperature) {
    Request made;
    made.prompt_mode = HELIUM_PROMPT_APPEND;
    made.max_new_tokens = 30;
    made.temperature = temperature;
    return made;
}

fs::path saved(const TemporaryFolder& folder) {
    Conversation conversation(model());
    generate(conversation, request("To insert a table,", 12));
    const fs::path path = folder.path / "session";
    conversation.save(path.string());
    return path;
}

helium_status restored(const std::string& path, const ConversationOptions& options = {}) {
    return status_of([&] { Conversation::restore(model(), path, options); });
}

}  // namespace

TEST_CASE("a saved conversation goes on with the very same tokens") {
    for (double temperature : {0.0, 0.9}) {
        const TemporaryFolder folder;
        const std::string path = (folder.path / "session").string();
        Conversation conversation(model());
        Request asked = request("To insert a table,", 12);
        asked.temperature = temperature;
        asked.seed = 3;
        generate(conversation, asked);
        conversation.save(path);
        const Generated expected = generate(conversation, going_on(temperature));
        Conversation again = Conversation::restore(model(), path);
        const Generated got = generate(again, going_on(temperature));
        CHECK(got.ids == expected.ids);
        CHECK(got.text == expected.text);
        CHECK(got.result.seed == 3);
        CHECK(got.result.reused_tokens == got.result.prompt_tokens - 1);
        again.save(path);  // over the old one
        CHECK(Conversation::restore(model(), path).ids() == again.ids());
        CHECK(std::distance(fs::directory_iterator(folder.path), {}) == 1);  // nothing half is left
    }
}

TEST_CASE("an empty conversation can be saved too") {
    const TemporaryFolder folder;
    const std::string path = (folder.path / "session").string();
    Conversation(model()).save(path);
    Conversation again = Conversation::restore(model(), path), fresh(model());
    CHECK(again.ids().empty());
    CHECK(generate(again, request("Save")).ids == generate(fresh, request("Save")).ids);
}

#if !defined(_WIN32)
TEST_CASE("only its owner may read a saved conversation") {
    const TemporaryFolder folder;
    const fs::path path = saved(folder);
    CHECK(fs::status(path).permissions() == (fs::perms::owner_read | fs::perms::owner_write));
}
#endif

TEST_CASE("a changed file is refused, whatever was changed") {
    const TemporaryFolder folder;
    const fs::path path = saved(folder), bad = folder.path / "bad";
    const std::string whole = read(path);
    CHECK(restored(path.string()) == HELIUM_OK);
    for (size_t at = 0; at < whole.size(); at += at < 4096 ? 1 : 997) {
        std::string changed = whole;
        changed[at] = (char)(changed[at] ^ 0x04);
        write(bad, changed);
        const helium_status status = restored(bad.string());
        CAPTURE(at);
        CHECK((status == HELIUM_ERROR_SESSION_FILE || status == HELIUM_ERROR_FORMAT_VERSION));
    }
    for (size_t length : {(size_t)0, (size_t)7, (size_t)8, (size_t)100, whole.size() / 2, whole.size() - 1}) {
        write(bad, whole.substr(0, length));
        CHECK(restored(bad.string()) == HELIUM_ERROR_SESSION_FILE);
    }
    write(bad, whole + "x");
    CHECK(restored(bad.string()) == HELIUM_ERROR_SESSION_FILE);
    write(bad, std::string(8, '\xff') + whole);
    CHECK(restored(bad.string()) == HELIUM_ERROR_SESSION_FILE);
}

TEST_CASE("a file of another version, bundle or context says so") {
    const TemporaryFolder folder;
    const fs::path path = saved(folder), bad = folder.path / "bad";
    const std::string whole = read(path);
    const auto changed = [&](const std::string& from, const std::string& to) {
        std::string text = whole;
        const size_t at = text.find(from);
        REQUIRE(at != std::string::npos);
        write(bad, text.replace(at, from.size(), to));
        return restored(bad.string());
    };
    CHECK(changed("\"format_version\":\"1\"", "\"format_version\":\"2\"") == HELIUM_ERROR_FORMAT_VERSION);
    const std::string bundle = model().info().bundle;
    CHECK(changed(bundle, std::string(64, '0')) == HELIUM_ERROR_SESSION_FILE);
    CHECK(std::strstr(helium_error_text(), "another bundle") != nullptr);
    ConversationOptions options;
    options.context_length = 8;
    CHECK(restored(path.string(), options) == HELIUM_ERROR_CONTEXT_OVERFLOW);
    CHECK(restored((folder.path / "none").string()) == HELIUM_ERROR_IO);
    CHECK(restored(folder.path.string()) == HELIUM_ERROR_IO);
    Conversation conversation(model());
    CHECK(status_of([&] { conversation.save((folder.path / "no/such/folder").string()); }) == HELIUM_ERROR_IO);
}
