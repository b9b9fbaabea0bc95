// SHA-256 (FIPS 180-4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace helium::core {

class Sha256 {
   public:
    void update(const void* data, size_t bytes);
    std::string hex();  // of all so far; the end

   private:
    void blocks(const uint8_t* data, size_t count);
    uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint8_t held_[64];
    uint64_t total_ = 0;
};

inline std::string sha256_hex(const void* data, size_t bytes) {
    Sha256 hash;
    hash.update(data, bytes);
    return hash.hex();
}

}  // namespace helium::core
