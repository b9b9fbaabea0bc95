// tests/vectors of the repository: what every runtime must give.
#pragma once

#include <string>

#include "files.h"
#include "json.h"

inline helium::core::Json vectors(const std::string& name) {
    const std::string path = std::string(HELIUM_REPOSITORY) + "/tests/vectors/" + name;
    return helium::core::Json(helium::core::read_file(path, 1u << 30, HELIUM_ERROR_IO), name, HELIUM_ERROR_IO);
}

// Whether `body` throws an Error of this status.
template <class Body>
bool fails_with(helium_status status, const Body& body) {
    try {
        body();
    } catch (const helium::core::Error& error) {
        return error.status() == status;
    }
    return false;
}
