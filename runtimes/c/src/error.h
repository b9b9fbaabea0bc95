// What the library throws inside, and turns into a status where it is called from outside.
#pragma once

#include <cstring>
#include <exception>
#include <string>
#include <string_view>

#include "helium_onnx.h"

namespace helium::core {

// A failure in the words of the error text: "problem: found ...; expected ...; remedy". Empty parts are left out.
class Error : public std::exception {
   public:
    Error(helium_status status, std::string_view problem, std::string_view found = {}, std::string_view expected = {},
          std::string_view remedy = {});

    helium_status status() const { return status_; }
    const char* what() const noexcept override { return text_.c_str(); }

   private:
    helium_status status_;
    std::string text_;
};

// `text` shortened to what fits an error, quoted, without control characters.
std::string in_quotes(std::string_view text);

// An enumeration of the C interface as the caller gave it: any number may stand there.
template <class Enumeration>
int number_of(const Enumeration& value) {
    int number;
    static_assert(sizeof value == sizeof number);
    std::memcpy(&number, &value, sizeof number);
    return number;
}

// The calling thread's error text, in memory that is always there.
const char* error_text();
void set_error_text(const char* text);

// Runs `body`; what it throws becomes a status and the thread's error text.
template <class Body>
helium_status guarded(const Body& body) noexcept;

helium_status status_of_exception() noexcept;  // of the one in flight

template <class Body>
helium_status guarded(const Body& body) noexcept {
    try {
        body();
        return HELIUM_OK;
    } catch (...) {
        return status_of_exception();
    }
}

}  // namespace helium::core
