#include "utf8.h"

namespace helium::core {
namespace {

// How many bytes the sequence has that begins with `first`; 0: none does.
int sequence_length(unsigned char first) {
    if (first < 0x80) return 1;
    if (first >= 0xc2 && first < 0xe0) return 2;
    if (first >= 0xe0 && first < 0xf0) return 3;
    return first >= 0xf0 && first < 0xf5 ? 4 : 0;
}

// Whether `second` may follow `first`: no overlong forms, no surrogates, nothing above U+10FFFF (Unicode 15, table 3-7).
bool may_follow(unsigned char first, unsigned char second) {
    switch (first) {
        case 0xe0: return second >= 0xa0 && second < 0xc0;
        case 0xed: return second >= 0x80 && second < 0xa0;
        case 0xf0: return second >= 0x90 && second < 0xc0;
        case 0xf4: return second >= 0x80 && second < 0x90;
        default: return (second & 0xc0) == 0x80;
    }
}

}  // namespace

size_t first_ill_formed(std::string_view text) {
    for (size_t i = 0; i < text.size();) {
        const int length = sequence_length((unsigned char)text[i]);
        if (length == 0 || i + (size_t)length > text.size()) return i;
        if (length > 1 && !may_follow((unsigned char)text[i], (unsigned char)text[i + 1])) return i;
        for (int k = 2; k < length; ++k)
            if (((unsigned char)text[i + (size_t)k] & 0xc0) != 0x80) return i;
        i += (size_t)length;
    }
    return text.size();
}

void append_utf8(std::string& out, uint32_t code) {
    if (code < 0x80) {
        out += (char)code;
    } else if (code < 0x800) {
        out += (char)(0xc0 | code >> 6);
        out += (char)(0x80 | (code & 63));
    } else if (code < 0x10000) {
        out += (char)(0xe0 | code >> 12);
        out += (char)(0x80 | (code >> 6 & 63));
        out += (char)(0x80 | (code & 63));
    } else {
        out += (char)(0xf0 | code >> 18);
        out += (char)(0x80 | (code >> 12 & 63));
        out += (char)(0x80 | (code >> 6 & 63));
        out += (char)(0x80 | (code & 63));
    }
}

uint32_t next_character(std::string_view text, size_t& at) {
    const auto byte = [&](size_t i) { return (uint32_t)(unsigned char)text[at + i]; };
    const int length = sequence_length((unsigned char)text[at]);
    uint32_t code = byte(0);
    if (length == 2) code = (byte(0) & 31) << 6 | (byte(1) & 63);
    if (length == 3) code = (byte(0) & 15) << 12 | (byte(1) & 63) << 6 | (byte(2) & 63);
    if (length == 4) code = (byte(0) & 7) << 18 | (byte(1) & 63) << 12 | (byte(2) & 63) << 6 | (byte(3) & 63);
    at += (size_t)length;
    return code;
}

void Utf8Stream::push(std::string_view bytes, std::string& out) {
    static constexpr std::string_view kReplacement = "\xef\xbf\xbd";
    for (size_t i = 0; i < bytes.size(); ++i) {
        const auto byte = (unsigned char)bytes[i];
        if (count_ > 0) {
            if (count_ == 1 ? may_follow((unsigned char)held_[0], byte) : (byte & 0xc0) == 0x80) {
                held_[count_++] = (char)byte;
                if (count_ == needed_) {
                    out.append(held_, (size_t)count_);
                    count_ = 0;
                }
                continue;
            }
            out += kReplacement;  // for what was held; this byte begins anew
            count_ = 0;
        }
        needed_ = sequence_length(byte);
        if (needed_ == 1) out += (char)byte;
        if (needed_ == 0) out += kReplacement;
        if (needed_ > 1) held_[0] = (char)byte, count_ = 1;
    }
}

}  // namespace helium::core
