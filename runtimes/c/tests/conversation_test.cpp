#include "bundle.h"

using namespace helium;

namespace {

const std::string kPrompt = "To insert a table into a text document,";

Request appended(std::string text, int64_t tokens = 24) {
    Request made = request(std::move(text), tokens);
    made.prompt_mode = HELIUM_PROMPT_APPEND;
    return made;
}

Request going_on(int64_t tokens) {
    Request made;
    made.prompt_mode = HELIUM_PROMPT_APPEND;
    made.max_new_tokens = tokens;
    return made;
}

}  // namespace

TEST_CASE("text is that of the tokens, and the counts are right") {
    Conversation conversation(model());
    const Generated generated = generate(conversation, request(kPrompt));
    CHECK(generated.ids.size() == 24);
    CHECK(generated.text == model().decode(generated.ids, HELIUM_ENCODE_CONTINUE));
    CHECK(generated.result.finish == HELIUM_FINISH_LENGTH);
    CHECK(generated.result.new_tokens == 24);
    CHECK(generated.result.prompt_tokens == (int64_t)model().encode(kPrompt).size());
    CHECK(generated.result.reused_tokens == 0);
    CHECK(generated.result.stop_index == -1);
    CHECK(generated.result.first_token_seconds > 0);
    CHECK(generated.result.seconds >= generated.result.first_token_seconds);
    CHECK(generated.result.decode_tokens_per_second > 0);
    std::vector<int32_t> all = model().encode(kPrompt);
    all.insert(all.end(), generated.ids.begin(), generated.ids.end());
    CHECK(conversation.ids() == all);
}

TEST_CASE("a beginning that the conversation holds is not computed again, and changes nothing") {
    Conversation one(model()), other(model());
    const Generated first = generate(one, request(kPrompt));
    const std::string longer = kPrompt + " choose Table";
    const Generated second = generate(one, request(longer)), fresh = generate(other, request(longer));
    if (keeps_bits()) CHECK(second.ids == fresh.ids);
    CHECK(second.result.reused_tokens >= (int64_t)model().encode(kPrompt).size() - 1);
    CHECK(fresh.result.reused_tokens == 0);
    const Generated again = generate(one, request(kPrompt));
    if (keeps_bits()) CHECK(again.ids == first.ids);
    CHECK(again.result.reused_tokens == again.result.prompt_tokens - 1);  // the last is run for its logits
}

TEST_CASE("a text goes on where it ended, as if it had not ended") {
    for (bool draws : {false, true}) {
        CAPTURE(draws);
        Conversation whole(model()), parts(model());
        Request all = request(kPrompt, 60);
        Request begun = request(kPrompt, 20);
        if (draws) {
            all.temperature = begun.temperature = 0.9;
            all.seed = begun.seed = 7;
        }
        const Generated expected = generate(whole, all);
        Generated got = generate(parts, begun);
        for (int64_t tokens : {1, 0, 9, 30}) {
            Request next = going_on(tokens);
            next.temperature = begun.temperature;
            const Generated part = generate(parts, next);
            got.ids.insert(got.ids.end(), part.ids.begin(), part.ids.end());
            got.text += part.text;
        }
        CHECK(got.ids == expected.ids);
        CHECK(got.text == expected.text);
    }
}

TEST_CASE("half a character at the end of a turn is shown whole in the next") {
    Conversation conversation(model());
    std::vector<int32_t> ids = model().encode("\xf0\x9f\x91\x8d");  // a character of four byte tokens
    REQUIRE(ids.size() >= 5);
    const std::vector<int32_t> bytes(ids.end() - 4, ids.end());
    Request part;
    part.prompt_ids = {ids.begin(), ids.end() - 2};
    part.max_new_tokens = 0;
    generate(conversation, part);
    CHECK(model().decode({bytes.begin(), bytes.begin() + 2}) == "\xef\xbf\xbd");
    Request rest;
    rest.prompt_mode = HELIUM_PROMPT_APPEND;
    rest.prompt_ids = {ids.end() - 2, ids.end()};
    rest.max_new_tokens = 1;
    const Generated shown = generate(conversation, rest);
    CHECK(shown.text.find("\xef\xbf\xbd") == std::string::npos);
}

TEST_CASE("text can be appended, between what was generated") {
    Conversation conversation(model());
    generate(conversation, request(kPrompt, 8));
    const size_t before = conversation.ids().size();
    const Generated next = generate(conversation, appended(" Then save the file."));
    std::vector<int32_t> added = model().encode(" Then save the file.", HELIUM_ENCODE_CONTINUE);
    const std::vector<int32_t> ids = conversation.ids();
    CHECK(std::vector<int32_t>(ids.begin() + (long)before, ids.begin() + (long)(before + added.size())) == added);
    CHECK(next.result.reused_tokens == (int64_t)before - 1);
    Conversation fresh(model());
    Request whole;
    whole.prompt_ids = {ids.begin(), ids.begin() + (long)(before + added.size())};
    whole.max_new_tokens = 24;
    const Generated computed = generate(fresh, whole);
    if (keeps_bits()) CHECK(computed.ids == next.ids);
}

TEST_CASE("a prompt in chunks gives what it gives alone, with its progress") {
    std::string text;
    while (model().encode(text).size() < 1200) text += "To insert a table into a text document, choose Table - Insert. ";
    Conversation whole(model()), parts(model());
    std::vector<int64_t> seen;
    Request asked = request(text);
    asked.on_prefill = [&](int64_t done, int64_t of) {
        CHECK(of == (int64_t)model().encode(text).size());
        seen.push_back(done);
        return true;
    };
    const Generated expected = generate(whole, asked);
    CHECK(seen == std::vector<int64_t>{512, 1024, expected.result.prompt_tokens});
    Request half = request(text.substr(0, text.size() / 2), 0);
    generate(parts, half);
    const Generated joined = generate(parts, request(text));
    if (keeps_bits()) CHECK(joined.ids == expected.ids);
}

TEST_CASE("stop strings end the text before them") {
    Conversation conversation(model());
    const std::string whole = generate(conversation, request(kPrompt, 48)).text;
    const std::string stop = whole.substr(whole.size() / 2, 3);
    const size_t at = whole.find(stop);
    Request asked = request(kPrompt, 48);
    asked.stop = {"never to be found", stop};
    const Generated stopped = generate(conversation, asked);
    CHECK(stopped.text == whole.substr(0, at));
    CHECK(stopped.result.finish == HELIUM_FINISH_STOP);
    CHECK(stopped.result.stop_index == 1);
}

TEST_CASE("a seed gives its tokens, another seed others, and none a new one") {
    Conversation conversation(model());
    Request asked = request(kPrompt, 32);
    asked.temperature = 1;
    asked.seed = 42;
    const Generated first = generate(conversation, asked);
    conversation.truncate(0);
    CHECK(generate(conversation, asked).ids == first.ids);
    CHECK(first.result.seed == 42);
    asked.seed = 43;
    CHECK(generate(conversation, asked).ids != first.ids);
    Conversation one(model()), other(model()), same(model());
    asked.seed.reset();
    const Generated a = generate(one, asked), b = generate(other, asked);
    CHECK(a.result.seed != b.result.seed);
    asked.seed = a.result.seed;
    CHECK(generate(same, asked).ids == a.ids);
}

TEST_CASE("the context ends a text, or slides") {
    ConversationOptions options;
    options.context_length = 64;
    Conversation ends(model(), options);
    const Generated full = generate(ends, request(kPrompt, 1000));
    CHECK(full.result.finish == HELIUM_FINISH_CONTEXT);
    CHECK(ends.ids().size() == 64);
    CHECK(status_of([&] { generate(ends, going_on(1)); }) == HELIUM_ERROR_CONTEXT_OVERFLOW);
    CHECK(ends.ids().size() == 64);
    std::string text;
    for (int i = 0; i < 40; ++i) text += kPrompt;
    CHECK(status_of([&] { generate(ends, request(text)); }) == HELIUM_ERROR_CONTEXT_OVERFLOW);

    options.overflow = HELIUM_OVERFLOW_SLIDE;
    Conversation slides(model(), options);
    Request asked = request(kPrompt, 300);
    asked.ignore_eos = true;
    const Generated more = generate(slides, asked);
    CHECK(more.result.finish == HELIUM_FINISH_LENGTH);
    CHECK(more.ids.size() == 300);
    // The same tokens as those before the slide; and after it the same as a text of what was kept.
    CHECK(std::vector<int32_t>(more.ids.begin(), more.ids.begin() + (long)full.ids.size()) == full.ids);
    std::vector<int32_t> kept(full.ids.end() - 32, full.ids.end());
    kept.insert(kept.begin(), model().encode(kPrompt)[0]);
    Conversation again(model(), options);
    Request rest;
    rest.prompt_ids = kept;
    rest.max_new_tokens = 10;
    rest.ignore_eos = true;
    CHECK(generate(again, rest).ids == std::vector<int32_t>(more.ids.begin() + (long)full.ids.size(), more.ids.begin() + (long)full.ids.size() + 10));
    CHECK(generate(slides, request(text, 5)).result.prompt_tokens == 33);

    options.context_length = 2;
    Conversation tiny(model(), options);
    asked.max_new_tokens = 20;
    CHECK(generate(tiny, asked).ids.size() == 20);
}

TEST_CASE("tokens can be forgotten") {
    Conversation conversation(model());
    const Generated first = generate(conversation, request(kPrompt));
    const size_t prompt = model().encode(kPrompt).size();
    conversation.truncate(prompt);
    CHECK(conversation.ids() == model().encode(kPrompt));
    const Generated again = generate(conversation, going_on(24));
    if (keeps_bits()) CHECK(again.ids == first.ids);
    conversation.truncate(0);
    CHECK(conversation.ids().empty());
    CHECK(generate(conversation, request(kPrompt)).ids == first.ids);
    CHECK(status_of([&] { conversation.truncate(100000); }) == HELIUM_ERROR_INVALID_ARGUMENT);
}

TEST_CASE("callbacks end a text, and what they throw comes out") {
    Conversation conversation(model());
    int tokens = 0;
    Request asked = request(kPrompt, 100);
    asked.on_token = [&](int32_t) { return ++tokens < 5; };
    CHECK(conversation.generate(asked).finish == HELIUM_FINISH_CANCELLED);
    CHECK(tokens == 5);
    CHECK(conversation.ids().size() == model().encode(kPrompt).size() + 5);
    asked.on_token = [](int32_t) -> bool { throw std::logic_error("mine"); };
    CHECK_THROWS_WITH_AS(conversation.generate(asked), "mine", std::logic_error);
    asked.on_token = nullptr;
    asked.on_prefill = [](int64_t, int64_t) { return false; };
    conversation.truncate(0);
    CHECK(conversation.generate(asked).finish == HELIUM_FINISH_CANCELLED);
    asked.on_prefill = nullptr;
    Conversation fresh(model());
    CHECK(generate(conversation, request(kPrompt)).ids == generate(fresh, request(kPrompt)).ids);
}

TEST_CASE("a prompt may hold NULs, emoji and names of control tokens") {
    Conversation conversation(model());
    const std::string text("a\0b \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7 </s> \xe6\x97\xa5", 24);
    CHECK(generate(conversation, request(text, 4)).result.prompt_tokens == (int64_t)model().encode(text).size());
    Request special = request("a</s>", 4);
    special.parse_special = true;
    CHECK(generate(conversation, special).result.prompt_tokens < (int64_t)model().encode("a</s>").size());
}

TEST_CASE("several conversations take turns over one model") {
    std::vector<std::string> prompts{kPrompt, "Pour enregistrer un document,", "Um eine Datei zu speichern,"};
    std::vector<std::vector<int32_t>> alone;
    std::vector<Conversation> conversations;
    for (const std::string& prompt : prompts) {
        Conversation one(model());
        alone.push_back(generate(one, request(prompt, 12)).ids);
        conversations.emplace_back(model());
        generate(conversations.back(), request(prompt, 0));
    }
    std::vector<std::vector<int32_t>> together(3);
    for (int step = 0; step < 12; ++step)
        for (size_t i = 0; i < 3; ++i) {
            const Generated one = generate(conversations[i], going_on(1));
            together[i].insert(together[i].end(), one.ids.begin(), one.ids.end());
        }
    CHECK(together == alone);
}

TEST_CASE("the model tells what it is, and what it needs") {
    const helium_model_info info = model().info();
    CHECK(info.vocab_size == 6000);
    CHECK(std::string(info.bundle).size() == 64);
    CHECK(info.weights_bytes > 1000000);
    CHECK(info.load_seconds > 0);
    CHECK(info.peak_memory > 0);
    const helium_memory_plan plan = Model::plan_memory(bundle_path());
    CHECK(plan.weights == info.weights_bytes);
    CHECK(plan.total == plan.weights + plan.private_weights + plan.cache + plan.working);
    ModelOptions shorter;
    shorter.context_length = 128;
    CHECK(Model::plan_memory(bundle_path(), shorter).cache * (info.context_length / 128) == plan.cache);
}
