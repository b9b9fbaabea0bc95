#include "trie.h"

namespace helium::core {

Trie::Trie(const std::vector<std::pair<std::string_view, int32_t>>& pieces) {
    // A node's pieces are a range of the sorted ones that share `depth` bytes; nodes are made breadth first.
    struct Range {
        size_t begin, end, depth;
    };
    std::vector<Range> ranges{{0, pieces.size(), 0}};
    for (size_t node = 0; node < nodes_.size(); ++node) {
        auto [begin, end, depth] = ranges[node];
        if (begin < end && pieces[begin].first.size() == depth) nodes_[node].id = pieces[begin++].second;
        nodes_[node].children = (uint32_t)nodes_.size();
        while (begin < end) {
            const auto byte = (uint8_t)pieces[begin].first[depth];
            size_t next = begin;
            while (next < end && (uint8_t)pieces[next].first[depth] == byte) ++next;
            Node child;
            child.byte = byte;
            nodes_.push_back(child);
            ranges.push_back({begin, next, depth + 1});
            ++nodes_[node].count;
            begin = next;
        }
    }
}

uint32_t Trie::child(uint32_t node, uint8_t byte) const {
    const Node& parent = nodes_[node];
    uint32_t low = parent.children, high = low + parent.count;
    if (parent.count == 256) return low + byte;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (nodes_[middle].byte < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low < parent.children + parent.count && nodes_[low].byte == byte ? low : kNone;
}

}  // namespace helium::core
