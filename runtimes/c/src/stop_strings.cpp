#include "stop_strings.h"

#include <algorithm>
#include <deque>

#include "error.h"
#include "utf8.h"

namespace helium::core {

StopStrings::StopStrings(const std::vector<std::string_view>& stop) {
    for (size_t i = 0; i < stop.size(); ++i) {
        if (stop[i].empty() || !is_utf8(stop[i]))
            throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "a stop string cannot be used", in_quotes(stop[i]), "UTF-8 of at least one character", "leave it out");
        lengths_.push_back(stop[i].size());
        uint32_t state = 0;
        for (char c : stop[i]) {
            const auto [next, is_new] = states_[state].next.try_emplace((uint8_t)c, (uint32_t)states_.size());
            const uint32_t child = next->second;
            if (is_new) {
                State made;
                made.depth = states_[state].depth + 1;
                states_.push_back(std::move(made));
            }
            state = child;
        }
        if (states_[state].longest < 0) states_[state].longest = (int)i;
    }
    std::deque<uint32_t> queue;
    for (const auto& [byte, child] : states_[0].next) queue.push_back(child);
    for (; !queue.empty(); queue.pop_front()) {
        State& state = states_[queue.front()];
        for (const auto& [byte, child] : state.next) {
            states_[child].fail = step(state.fail, byte);
            queue.push_back(child);
        }
        if (state.longest < 0) state.longest = states_[state.fail].longest;
        state.open_depth = state.next.empty() ? states_[state.fail].open_depth : state.depth;
    }
}

uint32_t StopStrings::step(uint32_t state, uint8_t byte) const {
    for (;; state = states_[state].fail) {
        const auto found = states_[state].next.find(byte);
        if (found != states_[state].next.end()) return found->second;
        if (state == 0) return 0;
    }
}

void StopStrings::push(std::string_view text, std::string& out) {
    if (match_ >= 0) return;
    if (lengths_.empty()) {
        out += text;
        return;
    }
    for (char c : text) {
        held_ += c;
        state_ = step(state_, (uint8_t)c);
        const State& state = states_[state_];
        if (state.longest >= 0) {
            // One that starts earlier than the one found, or there and is longer, takes its place.
            const size_t start = held_.size() - lengths_[(size_t)state.longest];
            if (found_ < 0 || start <= found_at_) found_ = state.longest, found_at_ = start;
        }
        if (found_ >= 0 && found_at_ < held_.size() - state.open_depth) return close(out);
    }
    size_t certain = held_.size() - states_[state_].open_depth;
    if (found_ >= 0) certain = std::min(certain, found_at_), found_at_ -= certain;
    out.append(held_, 0, certain);
    held_.erase(0, certain);
}

void StopStrings::finish(std::string& out) {
    if (match_ < 0) close(out);
}

void StopStrings::close(std::string& out) {
    out.append(held_, 0, found_ >= 0 ? found_at_ : std::string::npos);
    held_.clear();
    match_ = found_;
}

}  // namespace helium::core
