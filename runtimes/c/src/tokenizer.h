// Helium's tokenizer: Unigram with byte fallback, <s> first. Encodes and decodes as helium_onnx/tokenizer.py does, that
// is, as the `tokenizers` library, but for two things: control tokens that a user typed are text, and bytes that are no
// character become U+FFFD without ending a stream. Immutable once made: any number of threads may use one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bundle.h"
#include "json.h"
#include "trie.h"
#include "utf8.h"

namespace helium::core {

class Tokenizer {
   public:
    // `json` is the text of tokenizer.json. Throws TOKENIZER where it is malformed or does not fit the model.
    Tokenizer(std::string json, int64_t vocab_size, int64_t bos_token_id, std::vector<int32_t> eos_token_ids);

    // `flags` are helium_encode_flags. Throws PROMPT where `text` is no UTF-8.
    std::vector<int32_t> encode(std::string_view text, uint32_t flags) const;

    // `flags` are helium_encode_flags. Throws TOKENIZER where an id is outside the vocabulary.
    std::string decode(const int32_t* ids, size_t count, uint32_t flags) const;

    // What a token reads as in the middle of a text: " the", one byte of a character, or nothing for <s>. `id` is known.
    std::string_view token_bytes(int32_t id) const;

    bool is_eos(int32_t id) const;
    int64_t vocab_size() const { return (int64_t)starts_.size() - 1; }
    bool strips_first_space() const { return strips_first_space_; }

   private:
    struct AddedToken {
        int32_t id;
        std::string content;
        bool special, single_word, plain;  // plain: matches as it stands
    };
    struct Replacement {
        std::string from, to;  // Prepend where `from` is empty
    };

    static std::vector<AddedToken> added_tokens(const JsonValue& root);
    void read_vocabulary(const JsonValue& root);
    void read_normalizer(const JsonValue& step);
    void read_pre_tokenizer(const JsonValue& step);
    void read_post_processor(const JsonValue& step);
    void read_decoder(const JsonValue& step, std::vector<Replacement>& replacements);
    void encode_part(std::string_view text, uint32_t flags, std::vector<int32_t>& ids) const;
    void viterbi(std::string_view section, bool parse_special, std::vector<int32_t>& ids) const;
    std::string normalized(std::string_view text, bool continues) const;

    Trie trie_;
    std::vector<double> scores_;
    std::vector<bool> hidden_;  // names that a user's text does not match: control tokens, bytes, <unk>
    int32_t unk_id_ = 0;
    double unk_score_ = 0;
    std::string unk_piece_;
    bool byte_fallback_ = false;
    int32_t byte_ids_[256];
    std::vector<AddedToken> added_, control_;
    std::vector<Replacement> normalizer_;
    std::string split_;
    std::vector<int32_t> prefix_;
    bool strips_first_space_ = false;
    std::string bytes_;             // of all tokens, one behind the other
    std::vector<uint32_t> starts_;  // [vocab_size + 1]
    std::vector<int32_t> eos_token_ids_;
};

// Tokens in, text out, as soon as it is certain.
class TextStream {
   public:
    TextStream(const Tokenizer& tokenizer, bool strip_first_space) : tokenizer_(&tokenizer), strip_(strip_first_space) {}

    // Behind tokens that were read already: what stands there decides about a first space, and may be half a character.
    TextStream(const Tokenizer& tokenizer, const std::vector<int32_t>& before);

    void push(int32_t id, std::string& out);

    void finish(std::string& out);  // half a character at the end becomes U+FFFD

   private:
    const Tokenizer* tokenizer_;
    bool strip_;
    Utf8Stream utf8_;
};

}  // namespace helium::core
