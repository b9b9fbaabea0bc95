// Stop strings over text that arrives in pieces, as helium_onnx/generation/stopping.py finds them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace helium::core {

// Ends a text at the earliest stop string; of those that start there, the longest is the match. An Aho-Corasick automaton
// over bytes: a byte is read once, whatever the number and length of the stop strings.
class StopStrings {
   public:
    // Throws INVALID_ARGUMENT where one is empty or no UTF-8.
    explicit StopStrings(const std::vector<std::string_view>& stop);

    // Reads whole characters, and appends to `out` what can no longer be part of a stop string.
    void push(std::string_view text, std::string& out);

    // The text has ended: decides an open match, and appends what was withheld before it, or all without one.
    void finish(std::string& out);

    int match() const { return match_; }  // the index of the stop string; -1 as long as none is certain

   private:
    struct State {
        std::map<uint8_t, uint32_t> next;
        uint32_t fail = 0, depth = 0;
        uint32_t open_depth = 0;  // of the longest suffix, itself included, that more text could extend
        int longest = -1;         // the longest stop string that ends here
    };
    uint32_t step(uint32_t state, uint8_t byte) const;
    void close(std::string& out);

    std::vector<State> states_{State{}};
    std::vector<size_t> lengths_;
    uint32_t state_ = 0;
    std::string held_;       // read and not yet given back
    int found_ = -1;         // a stop string that is still open, and where in held_ it begins
    size_t found_at_ = 0;
    int match_ = -1;
};

}  // namespace helium::core
