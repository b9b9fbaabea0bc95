#include <atomic>
#include <chrono>
#include <thread>

#include "bundle.h"

using namespace helium;

namespace {

Request endless() {
    Request made = request("Save", 1000000);
    made.ignore_eos = true;
    return made;
}

Conversation sliding() {
    ConversationOptions options;
    options.overflow = HELIUM_OVERFLOW_SLIDE;
    return Conversation(model(), options);
}

}  // namespace

TEST_CASE("another thread cancels") {
    for (int round = 0; round < 5; ++round) {
        Conversation conversation = sliding();
        std::atomic<int64_t> tokens{0};
        Request asked = endless();
        asked.on_token = [&](int32_t) { return ++tokens, true; };
        std::thread cancels([&] {
            while (tokens < 10) std::this_thread::yield();
            conversation.cancel();
        });
        const Result result = conversation.generate(asked);
        cancels.join();
        CHECK(result.finish == HELIUM_FINISH_CANCELLED);
        CHECK(result.new_tokens == tokens);
        Conversation fresh(model());
        CHECK(generate(conversation, request("Save")).ids == generate(fresh, request("Save")).ids);
    }
}

TEST_CASE("cancel interrupts a prompt") {
    std::string text;
    while (model().encode(text).size() < 1500) text += "To insert a table into a text document, choose Table - Insert. ";
    Conversation conversation(model());
    Request asked = request(text);
    asked.on_prefill = [&](int64_t, int64_t) { return conversation.cancel(), true; };
    const Result result = conversation.generate(asked);
    CHECK(result.finish == HELIUM_FINISH_CANCELLED);
    CHECK(result.new_tokens == 0);
    CHECK(conversation.ids().size() == 512);
    Conversation fresh(model());
    CHECK(generate(conversation, request(text)).ids == generate(fresh, request(text)).ids);
}

TEST_CASE("cancel before a text begins does nothing") {
    Conversation conversation(model());
    conversation.cancel();
    CHECK(generate(conversation, request("Save", 5)).ids.size() == 5);
}

TEST_CASE("a second thread is told that the conversation is in use") {
    Conversation conversation = sliding();
    std::atomic<bool> runs{false};
    Request asked = endless();
    asked.on_token = [&](int32_t) { return runs = true; };
    std::thread first([&] { conversation.generate(asked); });
    while (!runs) std::this_thread::yield();
    CHECK(status_of([&] { conversation.generate(request("a")); }) == HELIUM_ERROR_BUSY);
    CHECK(status_of([&] { conversation.ids(); }) == HELIUM_ERROR_BUSY);
    CHECK(status_of([&] { conversation.truncate(0); }) == HELIUM_ERROR_BUSY);
    CHECK(status_of([&] { conversation.save("/tmp/never"); }) == HELIUM_ERROR_BUSY);
    conversation.cancel();
    first.join();
    CHECK(!conversation.ids().empty());
}

TEST_CASE("a callback that uses the conversation is told so") {
    Conversation conversation(model());
    Request asked = request("Save", 3);
    helium_status status = HELIUM_OK;
    asked.on_token = [&](int32_t) { return status = status_of([&] { conversation.ids(); }), true; };
    conversation.generate(asked);
    CHECK(status == HELIUM_ERROR_BUSY);
}

TEST_CASE("closing in the middle of a text ends it, from any thread") {
    for (int round = 0; round < 10; ++round) {
        auto conversation = std::make_unique<Conversation>(sliding());
        std::atomic<bool> runs{false};
        Request asked = endless();
        asked.on_token = [&](int32_t) { return runs = true; };
        helium_status status = HELIUM_OK;
        std::thread generates([&] { status = status_of([&] { conversation->generate(asked); }); });
        while (!runs) std::this_thread::yield();
        conversation->close();
        generates.join();
        CHECK(status == HELIUM_ERROR_CLOSED);
    }
    Conversation conversation(model());
    Request asked = request("Save", 100);
    asked.on_token = [&](int32_t) { return conversation.close(), true; };
    CHECK(status_of([&] { conversation.generate(asked); }) == HELIUM_ERROR_CLOSED);
}

TEST_CASE("conversations run beside each other") {
    std::vector<std::vector<int32_t>> alone, beside(4);
    const std::vector<std::string> prompts{"Save", "Pour enregistrer", "Um eine Datei", "Per salvare"};
    for (const std::string& prompt : prompts) {
        Conversation one(model());
        alone.push_back(generate(one, request(prompt, 40)).ids);
    }
    std::vector<std::thread> threads;
    for (size_t i = 0; i < 4; ++i)
        threads.emplace_back([&, i] {
            Conversation one(model());
            beside[i] = generate(one, request(prompts[i], 40)).ids;
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(beside == alone);
}

TEST_CASE("models are opened and closed beside each other") {
    std::vector<std::thread> threads;
    std::atomic<int> good{0};
    for (int i = 0; i < 3; ++i)
        threads.emplace_back([&] {
            Model loaded(bundle_path());
            Conversation conversation(loaded);
            good += generate(conversation, request("Save", 3)).ids.size() == 3;
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(good == 3);
}
