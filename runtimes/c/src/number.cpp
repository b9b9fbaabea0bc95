#include "number.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#if defined(__APPLE__)
#include <xlocale.h>
#endif
#include <clocale>
#include <locale.h>

namespace helium::core {

// The C library's own conversion is exact everywhere; std::from_chars has no doubles in Android's and Apple's libc++.
double parse_double(std::string_view text) {
    char digits[64];
    std::string longer;
    const char* start = digits;
    if (text.size() < sizeof digits) {
        std::memcpy(digits, text.data(), text.size());
        digits[text.size()] = 0;
    } else {
        longer = text;
        start = longer.c_str();
    }
#if defined(_WIN32)
    static const _locale_t c_locale = _create_locale(LC_ALL, "C");
    return _strtod_l(start, nullptr, c_locale);
#else
    static const locale_t c_locale = [] {
        const locale_t made = newlocale(LC_ALL_MASK, "C", (locale_t)0);
        if (!made) throw std::bad_alloc();  // and the next call tries again
        return made;
    }();
    return strtod_l(start, nullptr, c_locale);
#endif
}

}  // namespace helium::core
