#include "error.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

#include "utf8.h"

namespace helium::core {
namespace {

constexpr size_t kLongest = 1024;
thread_local char t_text[kLongest] = "";

}  // namespace

Error::Error(helium_status status, std::string_view problem, std::string_view found, std::string_view expected,
             std::string_view remedy)
    : status_(status), text_(problem) {
    const char* separator = ": ";
    const auto add = [&](std::string_view label, std::string_view text) {
        if (text.empty()) return;
        text_.append(separator).append(label).append(text);
        separator = "; ";
    };
    add("found ", found);
    add("expected ", expected);
    add("", remedy);
}

std::string in_quotes(std::string_view text) {
    std::string shown = "'";
    const bool readable = is_utf8(text);
    for (char c : text.substr(0, 120)) shown += (unsigned char)c < 0x20 || c == 0x7f || (!readable && (unsigned char)c >= 0x80) ? '?' : c;
    while (text.size() > 120 && shown.size() > 1 && ((unsigned char)shown.back() & 0xc0) == 0x80) shown.pop_back();
    if (text.size() > 120) {
        if ((unsigned char)shown.back() >= 0xc0) shown.pop_back();  // the first byte of a character that was cut
        shown += "...";
    }
    return shown += "'";
}

const char* error_text() { return t_text; }

void set_error_text(const char* text) {
    size_t length = std::min(std::strlen(text), kLongest - 1);
    while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80) --length;  // whole characters
    std::memcpy(t_text, text, length);
    t_text[length] = 0;
}

helium_status status_of_exception() noexcept {
    try {
        throw;
    } catch (const Error& error) {
        set_error_text(error.what());
        return error.status();
    } catch (const std::bad_alloc&) {
        set_error_text("out of memory: close other programs, ask for a shorter context, or take a smaller bundle");
        return HELIUM_ERROR_OUT_OF_MEMORY;
    } catch (const std::length_error&) {  // of a container: more than any memory holds
        set_error_text("out of memory: a size beyond what any memory holds");
        return HELIUM_ERROR_OUT_OF_MEMORY;
    } catch (const std::exception& error) {
        set_error_text(error.what());
        return HELIUM_ERROR_INTERNAL;
    } catch (...) {
        set_error_text("an unknown failure");
        return HELIUM_ERROR_INTERNAL;
    }
}

}  // namespace helium::core
