// Numbers as text, whatever the process' locale is.
#pragma once

#include <string_view>

namespace helium::core {

// The double nearest to a JSON number; infinite where it is too large.
double parse_double(std::string_view text);

}  // namespace helium::core
