// UTF-8: validity, writing, and reading it as it arrives in pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace helium::core {

// Where the first bytes stand that are no character; text.size() where all are.
size_t first_ill_formed(std::string_view text);
inline bool is_utf8(std::string_view text) { return first_ill_formed(text) == text.size(); }

// `code` is no surrogate and at most 0x10ffff.
void append_utf8(std::string& out, uint32_t code);

// The code point that begins at `at`, which is moved behind it. `text` is valid.
uint32_t next_character(std::string_view text, size_t& at);

// Bytes that arrive in any pieces, whole characters out. Bytes that are none become U+FFFD, one for each maximal part of
// an ill-formed sequence (Unicode 15, 3.9, "substitution of maximal subparts"), as in Python and in browsers.
class Utf8Stream {
   public:
    void push(std::string_view bytes, std::string& out);
    bool is_open() const { return count_ > 0; }  // a character has begun and not ended
    void reset() { count_ = 0; }

   private:
    char held_[4];
    int count_ = 0, needed_ = 0;
};

}  // namespace helium::core
