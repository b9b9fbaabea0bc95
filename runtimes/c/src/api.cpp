// The C interface: arguments are checked here, and what is thrown inside becomes a status.
#include <algorithm>
#include <cstring>
#include <new>

#include "conversation.h"
#include "error.h"
#include "handles.h"
#include "model.h"

#ifndef HELIUM_ONNX_VERSION
#define HELIUM_ONNX_VERSION "unknown"
#endif

namespace {

using namespace helium::core;
using Models = Handles<helium_model, const Model>;
using Conversations = Handles<helium_conversation, Conversation>;

// A struct of the caller's, which may be of an older or a newer header, as this library knows it.
template <class T>
T known(const T* given, const T& defaults, const char* name) {
    T options = defaults;
    if (!given) return options;
    if (given->struct_size < sizeof(size_t) || given->struct_size > 1 << 16)
        throw Error(HELIUM_ERROR_INVALID_ARGUMENT, std::string(name) + " has no struct_size", std::to_string(given->struct_size), {}, "call its _init function");
    std::memcpy(&options, given, std::min(given->struct_size, sizeof(T)));
    options.struct_size = sizeof(T);
    return options;
}

// What this library knows, into a struct of the caller's.
template <class T>
void give(const T& found, T* out) {
    const size_t size = out->struct_size;
    std::memcpy(out, &found, std::min(size, sizeof(T)));
    out->struct_size = size;
}

template <class T>
void check_out(const T* out, const char* name) {
    if (!out) throw Error(HELIUM_ERROR_INVALID_ARGUMENT, std::string(name) + " is NULL", {}, "a place for the answer");
}

template <class T>
void check_sized(const T* out, const char* name) {
    check_out(out, name);
    if (out->struct_size < sizeof(size_t) || out->struct_size > 1 << 16)
        throw Error(HELIUM_ERROR_INVALID_ARGUMENT, std::string(name) + " has no struct_size", std::to_string(out->struct_size), "its sizeof");
}

std::string text_argument(const char* text, const char* name) {
    if (!text) throw Error(HELIUM_ERROR_INVALID_ARGUMENT, std::string(name) + " is NULL", {}, "a text that ends with a NUL");
    return text;
}

template <class T>
void give_list(const T* found, size_t n, T* out, size_t capacity, size_t* count) {
    if (!out && capacity > 0) throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "the place for the answer is NULL", {}, "a place, or a capacity of 0");
    if (out && n) std::memcpy(out, found, std::min(n, capacity) * sizeof(T));
    *count = n;
}

helium_model_options model_defaults() {
    helium_model_options options{};
    options.struct_size = sizeof options;
    options.spin = 1;
    return options;
}

helium_conversation_options conversation_defaults() {
    helium_conversation_options options{};
    options.struct_size = sizeof options;
    return options;
}

helium_request request_defaults() {
    helium_request request{};
    request.struct_size = sizeof request;
    request.prompt_bytes = HELIUM_TO_NUL;
    request.max_new_tokens = 256;
    request.top_p = 1;
    request.repetition_penalty = 1;
    return request;
}

std::shared_ptr<Conversation> open_conversation(helium_model* model, const helium_conversation_options* given) {
    const helium_conversation_options options = known(given, conversation_defaults(), "the options");
    const std::shared_ptr<const Model> loaded = Models::all().at(model);
    const int64_t most = loaded->engine()->context_length();
    if (options.context_length != 0 && (options.context_length < 2 || options.context_length > most))
        throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "the context length is out of range", std::to_string(options.context_length), "2 to " + std::to_string(most) + ", the model's");
    if (const int overflow = number_of(options.overflow); overflow != HELIUM_OVERFLOW_ERROR && overflow != HELIUM_OVERFLOW_SLIDE)
        throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "overflow is none that there is", std::to_string(overflow), "0 or 1");
    return std::make_shared<Conversation>(loaded, options.context_length, options.overflow);
}

}  // namespace

extern "C" {

const char* helium_status_name(helium_status status) {
    static const char* const kNames[] = {
        "HELIUM_OK", "HELIUM_ERROR_INVALID_ARGUMENT", "HELIUM_ERROR_CLOSED", "HELIUM_ERROR_OUT_OF_MEMORY", "HELIUM_ERROR_BUSY", "HELIUM_ERROR_RUNTIME",
        "HELIUM_ERROR_BUNDLE", "HELIUM_ERROR_INTEGRITY", "HELIUM_ERROR_FORMAT_VERSION", "HELIUM_ERROR_TOKENIZER", "HELIUM_ERROR_PROMPT",
        "HELIUM_ERROR_CONTEXT_OVERFLOW", "HELIUM_ERROR_LOGITS", "HELIUM_ERROR_SESSION_FILE", "HELIUM_ERROR_IO", "HELIUM_ERROR_INTERNAL"};
    const int number = number_of(status);
    return number >= 0 && number < (int)(sizeof kNames / sizeof *kNames) ? kNames[number] : "unknown";
}

const char* helium_error_text(void) { return error_text(); }
const char* helium_version(void) { return HELIUM_ONNX_VERSION; }
uint32_t helium_api_version(void) { return HELIUM_API_VERSION; }

void helium_model_options_init(helium_model_options* options) {
    if (options) *options = model_defaults();
}

void helium_conversation_options_init(helium_conversation_options* options) {
    if (options) *options = conversation_defaults();
}

void helium_request_init(helium_request* request) {
    if (request) *request = request_defaults();
}

helium_status helium_model_open(const char* path, const helium_model_options* options, helium_model** model) {
    return guarded([&] {
        check_out(model, "model");
        *model = Models::all().add(Model::load(text_argument(path, "path"), known(options, model_defaults(), "the options")));
    });
}

void helium_model_close(helium_model* model) { Models::all().remove(model); }

helium_status helium_model_get_info(helium_model* model, helium_model_info* info) {
    return guarded([&] {
        check_sized(info, "info");
        helium_model_info found{};
        Models::all().at(model)->describe(found);
        give(found, info);
    });
}

helium_status helium_plan_memory(const char* path, const helium_model_options* options, helium_memory_plan* plan) {
    return guarded([&] {
        check_sized(plan, "plan");
        give(plan_memory(text_argument(path, "path"), known(options, model_defaults(), "the options")), plan);
    });
}

helium_status helium_encode(helium_model* model, const char* text, size_t bytes, uint32_t flags, int32_t* ids, size_t capacity, size_t* count) {
    return guarded([&] {
        check_out(count, "count");
        if (!text) throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "text is NULL", {}, "UTF-8");
        const std::vector<int32_t> found = Models::all().at(model)->tokenizer().encode({text, bytes == HELIUM_TO_NUL ? std::strlen(text) : bytes}, flags);
        give_list(found.data(), found.size(), ids, capacity, count);
    });
}

helium_status helium_decode(helium_model* model, const int32_t* ids, size_t count, uint32_t flags, char* text, size_t capacity, size_t* bytes) {
    return guarded([&] {
        check_out(bytes, "bytes");
        if (!ids && count > 0) throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "ids is NULL", {}, "token ids");
        const std::shared_ptr<const Model> loaded = Models::all().at(model);
        const std::string found = loaded->tokenizer().decode(ids, count, flags);
        give_list(found.data(), found.size(), text, capacity, bytes);
    });
}

helium_status helium_conversation_open(helium_model* model, const helium_conversation_options* options, helium_conversation** conversation) {
    return guarded([&] {
        check_out(conversation, "conversation");
        *conversation = Conversations::all().add(open_conversation(model, options));
    });
}

void helium_conversation_close(helium_conversation* conversation) {
    if (const std::shared_ptr<Conversation> closed = Conversations::all().remove(conversation)) closed->close();
}

helium_status helium_generate(helium_conversation* conversation, const helium_request* request, helium_result* result) {
    return guarded([&] {
        if (!request) throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "request is NULL", {}, "a helium_request");
        if (result) check_sized(result, "result");
        helium_result found{};
        Conversations::all().at(conversation)->generate(known(request, request_defaults(), "the request"), found);
        if (result) give(found, result);
    });
}

helium_status helium_cancel(helium_conversation* conversation) {
    return guarded([&] { Conversations::all().at(conversation)->cancel(); });
}

helium_status helium_conversation_ids(helium_conversation* conversation, int32_t* ids, size_t capacity, size_t* count) {
    return guarded([&] {
        check_out(count, "count");
        const std::vector<int32_t> found = Conversations::all().at(conversation)->ids();
        give_list(found.data(), found.size(), ids, capacity, count);
    });
}

helium_status helium_conversation_truncate(helium_conversation* conversation, size_t count) {
    return guarded([&] { Conversations::all().at(conversation)->truncate(count); });
}

helium_status helium_conversation_save(helium_conversation* conversation, const char* path) {
    return guarded([&] { Conversations::all().at(conversation)->save(text_argument(path, "path")); });
}

helium_status helium_conversation_restore(helium_model* model, const char* path, const helium_conversation_options* options, helium_conversation** conversation) {
    return guarded([&] {
        check_out(conversation, "conversation");
        const std::shared_ptr<Conversation> made = open_conversation(model, options);
        made->restore(text_argument(path, "path"));
        *conversation = Conversations::all().add(made);
    });
}

}  // extern "C"
