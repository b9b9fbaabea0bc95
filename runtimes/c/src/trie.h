// The pieces of a vocabulary by their bytes.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace helium::core {

// Built once from sorted pieces. The children of a node lie together, ascending by byte.
class Trie {
   public:
    // `pieces` are sorted by text, without an empty or equal ones.
    explicit Trie(const std::vector<std::pair<std::string_view, int32_t>>& pieces);
    Trie() = default;

    static constexpr uint32_t kRoot = 0, kNone = ~0u;

    uint32_t child(uint32_t node, uint8_t byte) const;
    int32_t id(uint32_t node) const { return nodes_[node].id; }  // -1: no piece ends here

   private:
    struct Node {
        uint32_t children = 0;
        int32_t id = -1;
        uint16_t count = 0;
        uint8_t byte = 0;
    };
    std::vector<Node> nodes_{Node{}};
};

}  // namespace helium::core
