// What all targets share: an Error is an answer; anything else that comes out is a finding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <string>
#include <string_view>

#include "error.h"

template <class Body>
int answered(const Body& body) {
    try {
        body();
    } catch (const helium::core::Error&) {
    } catch (const std::bad_alloc&) {
    }
    return 0;
}
