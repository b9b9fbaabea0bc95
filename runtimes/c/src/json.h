// JSON, strictly by RFC 8259, over the text itself: a value is a place in it, and nothing is copied until it is asked for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "error.h"

namespace helium::core {

class Json;

// A value of a document, which must outlive it.
class JsonValue {
   public:
    enum Type : uint8_t { kNull, kFalse, kTrue, kNumber, kString, kArray, kObject };

    JsonValue(const Json* document, uint32_t node) : document_(document), node_(node) {}

    Type type() const;
    bool is_null() const { return type() == kNull; }
    std::string_view raw() const;  // as it stands in the text
    const char* type_name() const;

    // Each throws HELIUM_ERROR_BUNDLE's or the document's status where the value is of another kind or out of range.
    std::string string() const;
    bool boolean() const;
    double number() const;
    int64_t integer() const;  // whole, from -2^63 to 2^63 - 1

    uint32_t size() const;  // of an array or an object

    // Of an object. `at` throws without the key.
    std::optional<JsonValue> find(std::string_view key) const;
    JsonValue at(std::string_view key) const;

    // Walk an array (`key` is null) or an object: for (JsonItem i = value.begin(); i.valid(); i.next())
    class Item {
       public:
        bool valid() const { return left_ > 0; }
        void next();
        JsonValue key() const { return JsonValue(document_, node_); }  // of an object
        JsonValue value() const { return JsonValue(document_, keyed_ ? node_ + 1 : node_); }

       private:
        friend class JsonValue;
        Item(const Json* document, uint32_t node, uint32_t left, bool keyed)
            : document_(document), node_(node), left_(left), keyed_(keyed) {}
        const Json* document_;
        uint32_t node_, left_;
        bool keyed_;
    };
    Item begin() const;

    // Canonical JSON: sorted keys, no spaces, UTF-8, numbers as they stand. Throws where a key is given twice.
    void canonical(std::string& out, std::string_view left_out = {}) const;

   private:
    [[noreturn]] void wrong(const char* expected) const;
    std::string decoded() const;
    const Json* document_;
    uint32_t node_;
};

class Json {
   public:
    // Errors have `status` and begin with `name`, as "helium.json". Throws where `text` is no JSON, is nested deeper than
    // 64, or has 4 GB or more.
    Json(std::string text, std::string name, helium_status status);

    JsonValue root() const { return JsonValue(this, 0); }
    const std::string& name() const { return name_; }

   private:
    friend class JsonValue;
    friend class JsonValue::Item;
    struct Node {
        uint32_t begin, end;  // in the text; of a string without its quotes
        uint32_t after;       // the node behind this one and all that is in it
        uint32_t size;  // of an array or an object
        uint8_t type;
    };
    struct Reader;
    std::string text_, name_;
    helium_status status_;
    std::vector<Node> nodes_;
};

}  // namespace helium::core
