// helium_onnx.h in C++17: objects that close themselves, and exceptions. Header only.
//
//     helium::Model model("helium-int4");
//     helium::Conversation conversation(model);
//     helium::Request request("Once upon a time");
//     request.on_text = [](std::string_view text) { return bool(std::cout << text << std::flush); };
//     conversation.generate(request);
#ifndef HELIUM_ONNX_HPP
#define HELIUM_ONNX_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "helium_onnx.h"

namespace helium {

// A call that failed; what() is the text of helium_error_text.
class Error : public std::runtime_error {
   public:
    Error(helium_status status, const char* text) : std::runtime_error(text), status_(status) {}
    helium_status status() const noexcept { return status_; }

   private:
    helium_status status_;
};

inline void check(helium_status status) {
    if (status != HELIUM_OK) throw Error(status, helium_error_text());
}

struct ModelOptions : helium_model_options {
    ModelOptions() { helium_model_options_init(this); }
};

struct ConversationOptions : helium_conversation_options {
    ConversationOptions() { helium_conversation_options_init(this); }
};

// What helium_request has, with texts and callbacks that it owns. A callback returns true to go on, false to end the text;
// what it throws ends the text and comes out of `generate`.
struct Request {
    Request() = default;
    explicit Request(std::string text) : prompt(std::move(text)) {}

    std::optional<std::string> prompt;  // none: prompt_ids, or (in an appending request) nothing
    std::vector<int32_t> prompt_ids;
    helium_prompt_mode prompt_mode = HELIUM_PROMPT_WHOLE;
    bool parse_special = false;
    int64_t max_new_tokens = 256;
    double temperature = 0;
    int64_t top_k = 0;
    double top_p = 1, min_p = 0, repetition_penalty = 1;
    std::optional<uint64_t> seed;
    bool ignore_eos = false;
    std::vector<std::string> stop;
    std::function<bool(int32_t id)> on_token;
    std::function<bool(std::string_view text)> on_text;
    std::function<bool(int64_t done, int64_t of)> on_prefill;
};

struct Result : helium_result {
    Result() : helium_result{} { struct_size = sizeof(helium_result); }
};

class Model {
   public:
    explicit Model(const std::string& path, const ModelOptions& options = {}) { check(helium_model_open(path.c_str(), &options, &handle_)); }
    ~Model() { helium_model_close(handle_); }
    Model(Model&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Model& operator=(Model&& other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    helium_model* handle() const noexcept { return handle_; }

    helium_model_info info() const {
        helium_model_info info{};
        info.struct_size = sizeof info;
        check(helium_model_get_info(handle_, &info));
        return info;
    }

    // `flags` are helium_encode_flags.
    std::vector<int32_t> encode(std::string_view text, uint32_t flags = HELIUM_ENCODE_DEFAULT) const {
        std::vector<int32_t> ids(text.size() + 16);  // a token has a byte at least
        size_t count = 0;
        check(helium_encode(handle_, text.data() ? text.data() : "", text.size(), flags, ids.data(), ids.size(), &count));
        if (count > ids.size()) {
            ids.resize(count);
            check(helium_encode(handle_, text.data() ? text.data() : "", text.size(), flags, ids.data(), ids.size(), &count));
        }
        ids.resize(count);
        return ids;
    }

    std::string decode(const std::vector<int32_t>& ids, uint32_t flags = HELIUM_ENCODE_DEFAULT) const {
        size_t bytes = 0;
        check(helium_decode(handle_, ids.data(), ids.size(), flags, nullptr, 0, &bytes));
        std::string text(bytes, '\0');
        check(helium_decode(handle_, ids.data(), ids.size(), flags, text.data(), text.size(), &bytes));
        return text;
    }

    static helium_memory_plan plan_memory(const std::string& path, const ModelOptions& options = {}) {
        helium_memory_plan plan{};
        plan.struct_size = sizeof plan;
        check(helium_plan_memory(path.c_str(), &options, &plan));
        return plan;
    }

   private:
    helium_model* handle_ = nullptr;
};

class Conversation {
   public:
    explicit Conversation(const Model& model, const ConversationOptions& options = {}) {
        check(helium_conversation_open(model.handle(), &options, &handle_));
    }
    ~Conversation() { helium_conversation_close(handle_); }
    Conversation(Conversation&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Conversation& operator=(Conversation&& other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    Conversation(const Conversation&) = delete;
    Conversation& operator=(const Conversation&) = delete;

    static Conversation restore(const Model& model, const std::string& path, const ConversationOptions& options = {}) {
        Conversation made;
        check(helium_conversation_restore(model.handle(), path.c_str(), &options, &made.handle_));
        return made;
    }

    Result generate(const Request& request) {
        Callbacks callbacks{request, nullptr};
        std::vector<const char*> stop;
        for (const std::string& text : request.stop) stop.push_back(text.c_str());
        helium_request asked;
        helium_request_init(&asked);
        if (request.prompt) {
            asked.prompt = request.prompt->data();
            asked.prompt_bytes = request.prompt->size();
        } else if (!request.prompt_ids.empty()) {
            asked.prompt_ids = request.prompt_ids.data();
            asked.prompt_count = request.prompt_ids.size();
        }
        asked.prompt_mode = request.prompt_mode;
        asked.parse_special = request.parse_special;
        asked.max_new_tokens = request.max_new_tokens;
        asked.temperature = request.temperature;
        asked.top_k = request.top_k;
        asked.top_p = request.top_p;
        asked.min_p = request.min_p;
        asked.repetition_penalty = request.repetition_penalty;
        asked.seed = request.seed.value_or(0);
        asked.has_seed = request.seed.has_value();
        asked.ignore_eos = request.ignore_eos;
        asked.stop = stop.data();
        asked.stop_count = stop.size();
        asked.user = &callbacks;
        if (request.on_token) asked.on_token = [](void* user, int32_t id) { return Callbacks::call(user, [&](const Request& r) { return r.on_token(id); }); };
        if (request.on_text)
            asked.on_text = [](void* user, const char* text, size_t bytes) {
                return Callbacks::call(user, [&](const Request& r) { return r.on_text({text, bytes}); });
            };
        if (request.on_prefill)
            asked.on_prefill = [](void* user, int64_t done, int64_t of) {
                return Callbacks::call(user, [&](const Request& r) { return r.on_prefill(done, of); });
            };
        Result result;
        const helium_status status = helium_generate(handle_, &asked, &result);
        if (callbacks.thrown) std::rethrow_exception(callbacks.thrown);
        check(status);
        return result;
    }

    // From any thread.
    void cancel() { check(helium_cancel(handle_)); }

    std::vector<int32_t> ids() const {
        size_t count = 0;
        check(helium_conversation_ids(handle_, nullptr, 0, &count));
        std::vector<int32_t> ids(count);
        check(helium_conversation_ids(handle_, ids.data(), ids.size(), &count));
        ids.resize(count);
        return ids;
    }

    void truncate(size_t count) { check(helium_conversation_truncate(handle_, count)); }
    void save(const std::string& path) const { check(helium_conversation_save(handle_, path.c_str())); }

    // Void for all calls from now on; ends one that runs on another thread.
    void close() noexcept { helium_conversation_close(handle_); }

   private:
    Conversation() = default;

    // No exception may pass through the C library.
    struct Callbacks {
        const Request& request;
        std::exception_ptr thrown;

        template <class Call>
        static int call(void* user, const Call& call) noexcept {
            auto& self = *static_cast<Callbacks*>(user);
            try {
                return call(self.request) ? 0 : 1;
            } catch (...) {
                self.thrown = std::current_exception();
                return 1;
            }
        }
    };

    helium_conversation* handle_ = nullptr;
};

}  // namespace helium

#endif  // HELIUM_ONNX_HPP
