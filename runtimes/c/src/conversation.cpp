#include "conversation.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "error.h"
#include "saved_conversation.h"
#include "stop_strings.h"

namespace helium::core {
namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double rate(int64_t tokens, double time) { return tokens > 0 && time > 0 ? (double)tokens / time : 0; }

std::vector<std::string_view> stop_strings(const helium_request& request) {
    if (request.stop_count > 0 && !request.stop) throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "stop is NULL", {}, "stop_count texts");
    std::vector<std::string_view> stop;
    for (size_t i = 0; i < request.stop_count; ++i) {
        if (!request.stop[i]) throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "a stop string is NULL", {}, "a text that ends with a NUL");
        stop.emplace_back(request.stop[i]);
    }
    return stop;
}

}  // namespace

// One use of the conversation, alone: a second one is BUSY.
class Conversation::Running {
   public:
    explicit Running(Conversation& conversation) : conversation_(conversation) {
        const std::lock_guard<std::mutex> lock(conversation.state_);
        if (conversation.closed_) throw Error(HELIUM_ERROR_CLOSED, "the conversation is closed");
        if (conversation.busy_)
            throw Error(HELIUM_ERROR_BUSY, "the conversation is in use", "another call that has not returned", "one at a time", "open a second conversation");
        conversation.past_.allow();
        conversation.busy_ = true;
    }
    ~Running() {
        const std::lock_guard<std::mutex> lock(conversation_.state_);
        conversation_.busy_ = false;
    }
    Running(const Running&) = delete;

   private:
    Conversation& conversation_;
};

// The turn of one helium_generate: what it reads, writes and counts.
class Conversation::Turn {
   public:
    Turn(Conversation& conversation, const helium_request& request)
        : c_(conversation), request_(request), options_{request.temperature, request.top_k, request.top_p, request.min_p, request.repetition_penalty},
          stop_(stop_strings(request)) {
        options_.check();
        if (request.max_new_tokens < 0)
            throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "max_new_tokens is negative", std::to_string(request.max_new_tokens), "0 or more");
    }

    void run(helium_result& result) {
        const double begun = seconds();
        std::vector<int32_t> next = c_.next_ids(request_);
        const bool generates = request_.max_new_tokens > 0;
        c_.make_room(next, generates);
        take(std::move(next), generates);
        if (request_.has_seed || !c_.sampler_begun_) {
            c_.sampler_.begin(request_.has_seed ? request_.seed : random_seed());
            c_.sampler_begun_ = true;
        }
        result.seed = c_.sampler_.seed;
        result.prompt_tokens = (int64_t)c_.ids_.size();
        result.reused_tokens = c_.past_.length();
        const float* logits = nullptr;
        try {
            logits = prefill();
            prefill_seconds_ = seconds() - begun - called_back_;
        } catch (...) {
            c_.ids_.resize((size_t)c_.past_.length());
            throw;
        }
        result.prefill_tokens_per_second = rate(c_.past_.length() - result.reused_tokens, prefill_seconds_);
        if (ended_) {
            c_.ids_.resize((size_t)c_.past_.length());
        } else if (generates) {
            const double decoding = seconds();
            const double waited = called_back_;
            decode(logits, begun, result);
            result.decode_tokens_per_second = rate(result.new_tokens - 1, seconds() - decoding - (called_back_ - waited));
        }
        result.finish = finish_;
        result.stop_index = stop_.match();
        result.seconds = seconds() - begun;
    }

   private:
    // The conversation's tokens become `next`; what the past holds of their beginning stays.
    void take(std::vector<int32_t> next, bool generates) {
        const auto common = std::mismatch(c_.ids_.begin(), c_.ids_.end(), next.begin(), next.end()).first - c_.ids_.begin();
        // Of a text that goes on, the last token is always run: its logits are what comes next.
        const auto most = (int64_t)next.size() - (generates ? 1 : 0);
        c_.past_.truncate(std::min({(int64_t)common, most, c_.past_.length()}));
        c_.ids_.swap(next);
    }

    const float* prefill() {
        const float* logits = nullptr;
        const auto all = (int64_t)c_.ids_.size();
        while (c_.past_.length() < all && !ended_) {
            // Borders lie at multiples of the chunk, so that a text is split the same way however it came.
            const int64_t at = c_.past_.length(), count = std::min(all - at, Engine::kChunk - at % Engine::kChunk);
            logits = c_.past_.run(c_.ids_.data() + at, count);
            if (!logits) return cancelled();
            if (request_.on_prefill) call([&] { return request_.on_prefill(request_.user, c_.past_.length(), all); });
        }
        return logits;
    }

    void decode(const float* logits, double begun, helium_result& result) {
        const std::vector<int32_t> before(c_.ids_);
        TextStream stream(c_.model_->tokenizer(), before);
        const Tokenizer& tokenizer = c_.model_->tokenizer();
        for (;;) {
            const int32_t id = c_.sampler_.sample(logits, c_.model_->engine()->vocab_size(), c_.ids_, options_);
            if (++result.new_tokens == 1) result.first_token_seconds = seconds() - begun;
            c_.ids_.push_back(id);
            const bool is_end = !request_.ignore_eos && tokenizer.is_eos(id);
            if (request_.on_token) call([&] { return request_.on_token(request_.user, id); });
            if (is_end) {
                end(HELIUM_FINISH_EOS);
            } else {
                piece_.clear();
                stream.push(id, piece_);
                stop_.push(piece_, text_);
                if (stop_.match() >= 0) end(HELIUM_FINISH_STOP);
            }
            show();
            if (result.new_tokens == request_.max_new_tokens) end(HELIUM_FINISH_LENGTH);
            if (!ended_ && (int64_t)c_.ids_.size() >= c_.past_.capacity()) {
                if (c_.overflow_ == HELIUM_OVERFLOW_ERROR) {
                    end(HELIUM_FINISH_CONTEXT);
                } else {
                    std::vector<int32_t> kept(c_.ids_);
                    c_.make_room(kept, true);
                    take(std::move(kept), true);
                    c_.ids_.reserve((size_t)c_.past_.capacity() + 1);
                }
            }
            if (ended_) break;
            logits = nullptr;
            while (c_.past_.length() < (int64_t)c_.ids_.size()) {  // one token, but after a slide
                const int64_t at = c_.past_.length(), count = std::min((int64_t)c_.ids_.size() - at, Engine::kChunk - at % Engine::kChunk);
                if (!(logits = c_.past_.run(c_.ids_.data() + at, count))) break;
            }
            if (!logits) {
                cancelled();
                break;
            }
        }
        if (stop_.match() < 0) {
            stop_.finish(text_);
            if (stop_.match() >= 0) finish_ = HELIUM_FINISH_STOP;
            if (!told_to_end_) show();
        }
    }

    void show() {
        if (!text_.empty() && request_.on_text) call([&] { return request_.on_text(request_.user, text_.data(), text_.size()); });
        text_.clear();
    }

    // A callback, whose time is not the model's; non-zero ends the text.
    template <class Callback>
    void call(const Callback& callback) {
        const double begun = seconds();
        if (!told_to_end_ && callback() != 0) {
            told_to_end_ = true;
            end(HELIUM_FINISH_CANCELLED);
        }
        called_back_ += seconds() - begun;
    }

    void end(helium_finish why) {
        if (!ended_) finish_ = why;
        ended_ = true;
    }

    const float* cancelled() {
        const std::lock_guard<std::mutex> lock(c_.state_);
        if (c_.closed_) throw Error(HELIUM_ERROR_CLOSED, "the conversation was closed while it was in use");
        end(HELIUM_FINISH_CANCELLED);
        return nullptr;
    }

    Conversation& c_;
    const helium_request& request_;
    SamplingOptions options_;
    StopStrings stop_;
    std::string piece_, text_;
    helium_finish finish_ = HELIUM_FINISH_LENGTH;
    bool ended_ = false, told_to_end_ = false;
    double called_back_ = 0, prefill_seconds_ = 0;
};

Conversation::Conversation(std::shared_ptr<const Model> model, int64_t context_length, helium_overflow overflow)
    : model_(std::move(model)), overflow_(overflow), past_(model_->engine(), context_length ? context_length : model_->engine()->context_length()) {
    ids_.reserve((size_t)past_.capacity() + 1);
}

std::vector<int32_t> Conversation::next_ids(const helium_request& request) const {
    const int mode = number_of(request.prompt_mode);
    const bool appends = mode == HELIUM_PROMPT_APPEND;
    if (!appends && mode != HELIUM_PROMPT_WHOLE)
        throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "prompt_mode is none that there is", std::to_string(mode), "0 or 1");
    std::vector<int32_t> ids;
    ids.reserve((size_t)past_.capacity() + 1);
    if (appends) ids = ids_;
    if (request.prompt_ids && request.prompt)
        throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "the request has prompt and prompt_ids", "both", "one of them");
    if (request.prompt_ids) {
        for (size_t i = 0; i < request.prompt_count; ++i) {
            const int32_t id = request.prompt_ids[i];
            if (id < 0 || id >= model_->engine()->vocab_size())
                throw Error(HELIUM_ERROR_PROMPT, "a token id is outside the vocabulary", std::to_string(id), "0 to " + std::to_string(model_->engine()->vocab_size() - 1));
            ids.push_back(id);
        }
    } else if (request.prompt) {
        const size_t bytes = request.prompt_bytes == HELIUM_TO_NUL ? std::strlen(request.prompt) : request.prompt_bytes;
        const uint32_t flags = (appends && !ids_.empty() ? HELIUM_ENCODE_CONTINUE : HELIUM_ENCODE_DEFAULT) |
                               (request.parse_special ? HELIUM_ENCODE_PARSE_SPECIAL : HELIUM_ENCODE_DEFAULT);
        const std::vector<int32_t> read = model_->tokenizer().encode({request.prompt, bytes}, flags);
        ids.insert(ids.end(), read.begin(), read.end());
    }
    if (ids.empty()) throw Error(HELIUM_ERROR_PROMPT, "the prompt is empty", {}, "at least one token", "give a prompt");
    return ids;
}

void Conversation::make_room(std::vector<int32_t>& ids, bool generates) const {
    const auto most = (size_t)past_.capacity() - (generates ? 1 : 0);
    if (ids.size() > most) {
        if (overflow_ == HELIUM_OVERFLOW_ERROR)
            throw Error(HELIUM_ERROR_CONTEXT_OVERFLOW, "the text does not fit the context", std::to_string(ids.size()) + " tokens", "at most " + std::to_string(most),
                        "shorten it, or let the conversation slide");
        const size_t kept = std::min({ids.size() - 1, (size_t)past_.capacity() / 2, most - 1});
        ids.erase(ids.begin() + 1, ids.end() - (std::ptrdiff_t)kept);
    }
    ids.reserve((size_t)past_.capacity() + 1);  // a token that is chosen always finds its place
}

void Conversation::generate(const helium_request& request, helium_result& result) {
    const Running running(*this);
    result = {};
    result.stop_index = -1;
    Turn(*this, request).run(result);
}

void Conversation::cancel() {
    const std::lock_guard<std::mutex> lock(state_);
    if (busy_) past_.interrupt();
}

void Conversation::close() {
    const std::lock_guard<std::mutex> lock(state_);
    closed_ = true;
    if (busy_) past_.interrupt();
}

std::vector<int32_t> Conversation::ids() {
    const Running running(*this);
    return ids_;
}

void Conversation::truncate(size_t count) {
    const Running running(*this);
    if (count > ids_.size())
        throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "the conversation has fewer tokens", std::to_string(ids_.size()), std::to_string(count) + " or more");
    ids_.resize(count);
    past_.truncate(std::min(past_.length(), (int64_t)count));
}

void Conversation::save(const std::string& path) {
    const Running running(*this);
    SavedState state{model_->bundle_sha256(), model_->kernels_name(), ids_, sampler_begun_, sampler_.seed, sampler_.state};
    save_conversation(path_of(path), state, past_);
}

void Conversation::restore(const std::string& path) {
    const Running running(*this);
    const MappedFile file(path_of(path));
    const Engine& engine = *model_->engine();
    const SavedConversation saved({file.data(), file.size()}, path, {engine.past_specs(), engine.vocab_size(), model_->bundle_sha256(), model_->kernels_name()});
    if ((int64_t)saved.state.ids.size() > past_.capacity())
        throw Error(HELIUM_ERROR_CONTEXT_OVERFLOW, "the saved conversation does not fit the context", std::to_string(saved.state.ids.size()) + " tokens",
                    "at most " + std::to_string(past_.capacity()), "open it with a longer context");
    ids_ = saved.state.ids;
    ids_.reserve((size_t)past_.capacity() + 1);
    saved.fill(past_);
    sampler_begun_ = saved.state.sampler_begun;
    sampler_.seed = saved.state.seed;
    sampler_.state = saved.state.sampler;
}

}  // namespace helium::core
