#include "json.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "number.h"
#include "utf8.h"

namespace helium::core {

// A descent over the text; depth is bounded, so the stack is.
struct Json::Reader {
    Json& document;
    const std::string& text;
    uint32_t at = 0;

    static constexpr int kDeepest = 64;

    [[noreturn]] void fail(const char* expected) const {
        const std::string found = at < text.size() ? in_quotes(text.substr(at, 20)) : "the end";
        throw Error(document.status_, document.name_ + " is not JSON", found + " at byte " + std::to_string(at), expected);
    }

    void spaces() {
        while (at < text.size() && (text[at] == ' ' || text[at] == '\n' || text[at] == '\r' || text[at] == '\t')) ++at;
    }

    bool take(char c) {
        if (at >= text.size() || text[at] != c) return false;
        ++at;
        return true;
    }

    uint32_t open(JsonValue::Type type) {
        document.nodes_.push_back({at, 0, 0, 0, type});
        return (uint32_t)document.nodes_.size() - 1;
    }

    void close(uint32_t node, uint32_t end, uint32_t size) {
        Node& n = document.nodes_[node];
        n.end = end, n.after = (uint32_t)document.nodes_.size(), n.size = size;
    }

    void string() {
        if (!take('"')) fail("a string");
        const uint32_t node = open(JsonValue::kString);
        for (;; ++at) {
            if (at >= text.size() || (unsigned char)text[at] < 0x20) fail("the end of a string");
            if (text[at] == '"') break;
            if (text[at] != '\\') continue;
            if (++at >= text.size()) fail("an escape");
            if (text[at] == 'u') {
                for (int i = 0; i < 4; ++i)
                    if (++at >= text.size() || !is_hex(text[at])) fail("four hexadecimal digits");
            } else if (std::string_view("\"\\/bfnrt").find(text[at]) == std::string_view::npos) {
                fail("an escape");
            }
        }
        close(node, at++, 0);
    }

    static bool is_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }
    bool digits() {
        const uint32_t first = at;
        while (at < text.size() && text[at] >= '0' && text[at] <= '9') ++at;
        return at > first;
    }

    void number() {
        const uint32_t node = open(JsonValue::kNumber);
        take('-');
        if (!take('0') && !digits()) fail("a value");
        if (take('.') && !digits()) fail("a digit");
        if (take('e') || take('E')) {
            if (!take('+')) take('-');
            if (!digits()) fail("a digit");
        }
        close(node, at, 0);
    }

    bool word(std::string_view word, JsonValue::Type type) {
        if (text.compare(at, word.size(), word) != 0) return false;
        const uint32_t node = open(type);
        at += (uint32_t)word.size();
        close(node, at, 0);
        return true;
    }

    void value(int depth) {
        if (depth > kDeepest) fail("at most 64 levels");
        spaces();
        if (at >= text.size()) fail("a value");
        const char c = text[at];
        if (c == '"') return string();
        if (c == '{' || c == '[') {
            const uint32_t node = open(c == '{' ? JsonValue::kObject : JsonValue::kArray);
            const char last = c == '{' ? '}' : ']';
            uint32_t count = 0;
            ++at;
            spaces();
            if (!take(last)) {
                do {
                    if (c == '{') {
                        spaces();
                        string();
                        spaces();
                        if (!take(':')) fail("':'");
                    }
                    value(depth + 1);
                    ++count;
                    spaces();
                } while (take(','));
                if (!take(last)) fail(c == '{' ? "',' or '}'" : "',' or ']'");
            }
            return close(node, at, count);
        }
        if (word("true", JsonValue::kTrue) || word("false", JsonValue::kFalse) || word("null", JsonValue::kNull)) return;
        number();
    }
};

Json::Json(std::string text, std::string name, helium_status status)
    : text_(std::move(text)), name_(std::move(name)), status_(status) {
    if (text_.size() >= std::numeric_limits<uint32_t>::max())
        throw Error(status_, name_ + " is not readable", std::to_string(text_.size()) + " bytes", "less than 4 GB");
    if (!is_utf8(text_)) throw Error(status_, name_ + " is not JSON", "bytes that are no UTF-8", "UTF-8");
    Reader reader{*this, text_};
    reader.value(0);
    reader.spaces();
    if (reader.at != text_.size()) reader.fail("the end");
}

JsonValue::Type JsonValue::type() const { return (Type)document_->nodes_[node_].type; }
uint32_t JsonValue::size() const { return document_->nodes_[node_].size; }

std::string_view JsonValue::raw() const {
    const Json::Node& n = document_->nodes_[node_];
    return std::string_view(document_->text_).substr(n.begin, n.end - n.begin);
}

const char* JsonValue::type_name() const {
    static const char* const kNames[] = {"null", "false", "true", "a number", "text", "a list", "an object"};
    return kNames[type()];
}

void JsonValue::wrong(const char* expected) const {
    std::string found = type_name();
    if (type() == kNumber || type() == kString) found = in_quotes(raw());
    throw Error(document_->status_, document_->name_ + " has a value that it cannot have", found, expected);
}

std::string JsonValue::string() const {
    if (type() != kString) wrong("text");
    return decoded();
}

bool JsonValue::boolean() const {
    if (type() != kTrue && type() != kFalse) wrong("true or false");
    return type() == kTrue;
}

double JsonValue::number() const {
    if (type() != kNumber) wrong("a number");
    const double value = parse_double(raw());
    if (!std::isfinite(value)) wrong("a finite number");
    return value;
}

int64_t JsonValue::integer() const {
    const std::string_view text = raw();
    if (type() != kNumber || text.size() > 20 || text.find_first_of(".eE") != std::string_view::npos) wrong("a whole number");
    char digits[24] = "";
    text.copy(digits, text.size());
    errno = 0;
    const long long value = std::strtoll(digits, nullptr, 10);
    if (errno == ERANGE) wrong("a whole number below 2^63");
    return value;
}

std::string JsonValue::decoded() const {
    const std::string_view text = raw();
    std::string out;
    out.reserve(text.size());
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '\\') {
            out += text[i];
            continue;
        }
        const char c = text[++i];
        const auto unit = [&](size_t from) {
            uint32_t value = 0;
            for (size_t k = from; k < from + 4; ++k) {
                const char h = text[k];
                value = value * 16 + (uint32_t)(h <= '9' ? h - '0' : (h | 32) - 'a' + 10);
            }
            return value;
        };
        switch (c) {
            case 'b': out += '\b'; break;
            case 'f': out += '\f'; break;
            case 'n': out += '\n'; break;
            case 'r': out += '\r'; break;
            case 't': out += '\t'; break;
            case 'u': {
                uint32_t code = unit(i + 1);
                i += 4;
                if (code >= 0xd800 && code < 0xdc00 && i + 6 < text.size() && text[i + 1] == '\\' && text[i + 2] == 'u') {
                    const uint32_t low = unit(i + 3);
                    if (low >= 0xdc00 && low < 0xe000) code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00), i += 6;
                }
                if (code >= 0xd800 && code < 0xe000) wrong("whole characters, no lone surrogate");
                append_utf8(out, code);
                break;
            }
            default: out += c;
        }
    }
    return out;
}

std::optional<JsonValue> JsonValue::find(std::string_view key) const {
    if (type() != kObject) wrong("an object");
    for (Item item = begin(); item.valid(); item.next()) {
        const std::string_view name = item.key().raw();
        if (name == key || (name.find('\\') != std::string_view::npos && item.key().decoded() == key)) return item.value();
    }
    return std::nullopt;
}

JsonValue JsonValue::at(std::string_view key) const {
    if (std::optional<JsonValue> found = find(key)) return *found;
    throw Error(document_->status_, document_->name_ + " lacks a value", {}, std::string(key));
}

JsonValue::Item JsonValue::begin() const {
    if (type() != kArray && type() != kObject) wrong("a list or an object");
    return Item(document_, node_ + 1, size(), type() == kObject);
}

void JsonValue::Item::next() {
    if (--left_ > 0) node_ = document_->nodes_[keyed_ ? node_ + 1 : node_].after;
}

namespace {

void canonical_string(std::string& out, const std::string& text) {
    out += '"';
    for (char c : text) {
        switch (c) {
            case '"': out += "\\\""; break;
            case '\\': out += "\\\\"; break;
            case '\b': out += "\\b"; break;
            case '\f': out += "\\f"; break;
            case '\n': out += "\\n"; break;
            case '\r': out += "\\r"; break;
            case '\t': out += "\\t"; break;
            default:
                if ((unsigned char)c < 0x20) {
                    out += "\\u00";
                    out += (unsigned char)c < 0x10 ? '0' : '1';
                    out += "0123456789abcdef"[c & 15];
                } else {
                    out += c;
                }
        }
    }
    out += '"';
}

}  // namespace

void JsonValue::canonical(std::string& out, std::string_view left_out) const {
    if (type() == kString) return canonical_string(out, decoded());
    if (type() == kArray) {
        char separator = '[';
        for (Item item = begin(); item.valid(); item.next(), separator = ',') {
            out += separator;
            item.value().canonical(out);
        }
        out += size() ? "]" : "[]";
        return;
    }
    if (type() != kObject) {
        out += raw();
        return;
    }
    std::vector<std::pair<std::string, JsonValue>> members;
    for (Item item = begin(); item.valid(); item.next()) members.emplace_back(item.key().decoded(), item.value());
    std::sort(members.begin(), members.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    out += '{';
    bool first = true;
    for (size_t i = 0; i < members.size(); ++i) {
        if (i > 0 && members[i].first == members[i - 1].first)
            throw Error(document_->status_, document_->name_ + " is not strict JSON", "a key given twice: " + in_quotes(members[i].first));
        if (!left_out.empty() && members[i].first == left_out) continue;
        if (!first) out += ',';
        first = false;
        canonical_string(out, members[i].first);
        out += ':';
        members[i].second.canonical(out);
    }
    out += '}';
}

}  // namespace helium::core
