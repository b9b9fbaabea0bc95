#include "tokenizer.h"

#include <algorithm>
#include <iterator>
#include <limits>

namespace helium::core {
namespace {

// What the library takes off the lowest score of the vocabulary for a character that is in no piece.
constexpr double kUnknownPenalty = 10;
// A text of n bytes takes n times the longest piece at worst; Helium's longest has 48 bytes.
constexpr size_t kLongestPiece = 1024;
constexpr size_t kLargestText = 1u << 30;
constexpr const char* kRemedy = "copy the checkpoint's own tokenizer.json again";

[[noreturn]] void malformed(const std::string& found, const std::string& expected = {}) {
    throw Error(HELIUM_ERROR_TOKENIZER, "tokenizer.json is malformed", found, expected, kRemedy);
}

[[noreturn]] void unsupported(const std::string& found) {
    throw Error(HELIUM_ERROR_TOKENIZER, "the tokenizer is none of Helium's", found, "the steps of Helium's tokenizer.json");
}

struct Range {
    uint32_t first, last;
};
constexpr Range kWordCharacters[] = {
#include "word_characters.inl"
};

bool is_word(uint32_t code) {
    const Range* found = std::lower_bound(std::begin(kWordCharacters), std::end(kWordCharacters), code, [](const Range& r, uint32_t c) { return r.last < c; });
    return found != std::end(kWordCharacters) && found->first <= code;
}

// Whether the text from `begin` to `end` touches no word: an added token that is a single word is text where it does.
bool stands_alone(std::string_view text, size_t begin, size_t end) {
    if (end < text.size() && is_word(next_character(text, end))) return false;
    if (begin == 0) return true;
    do --begin;
    while (((unsigned char)text[begin] & 0xc0) == 0x80);
    return !is_word(next_character(text, begin));
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
    if (from.empty() || text.find(from) == std::string::npos) return;
    std::string out;
    size_t at = 0;
    for (size_t found; (found = text.find(from, at)) != std::string::npos; at = found + from.size())
        out.append(text, at, found - at).append(to);
    text = out.append(text, at, std::string::npos);
}

// A step of tokenizer.json, or the steps of a "Sequence" in its list `list`.
template <class Each>
void each_step(const JsonValue& step, const char* list, const Each& each) {
    if (step.is_null()) return;
    if (step.at("type").string() != "Sequence") return each(step);
    const JsonValue steps = step.at(list);
    for (auto item = steps.begin(); item.valid(); item.next()) each(item.value());
}

// {"String": "..."}; other patterns are regular expressions.
std::string plain_pattern(const JsonValue& step) {
    const auto text = step.at("pattern").find("String");
    if (!text) unsupported("a pattern that is a regular expression");
    std::string pattern = text->string();
    if (pattern.empty()) malformed("an empty pattern");
    return pattern;
}

// The value of a piece "<0x41>"; -1: another piece.
int byte_of(std::string_view piece) {
    if (piece.size() != 6 || piece.substr(0, 3) != "<0x" || piece[5] != '>') return -1;
    int value = 0;
    for (char c : piece.substr(3, 2)) {
        const size_t digit = std::string_view("0123456789ABCDEF").find(c);
        if (digit == std::string_view::npos) return -1;
        value = value * 16 + (int)digit;
    }
    return value;
}

}  // namespace

Tokenizer::Tokenizer(std::string json, int64_t vocab_size, int64_t bos_token_id, std::vector<int32_t> eos_token_ids)
    : eos_token_ids_(std::move(eos_token_ids)) {
    const Json document(std::move(json), "tokenizer.json", HELIUM_ERROR_TOKENIZER);
    const JsonValue root = document.root();
    read_vocabulary(root);
    if (this->vocab_size() != vocab_size)
        throw Error(HELIUM_ERROR_TOKENIZER, "the tokenizer does not fit the model's vocabulary", std::to_string(this->vocab_size()) + " ids",
                    std::to_string(vocab_size) + ", the model's vocab_size", "take the tokenizer.json of the same bundle");
    if (bos_token_id < -1 || bos_token_id >= vocab_size)
        throw Error(HELIUM_ERROR_TOKENIZER, "the tokenizer lacks the bos_token_id of config.json", std::to_string(bos_token_id));
    const auto step = [&](const char* key) {
        const auto found = root.find(key);
        return found && !found->is_null() ? found : std::nullopt;
    };
    if (const auto found = step("normalizer")) read_normalizer(*found);
    if (const auto found = step("pre_tokenizer")) read_pre_tokenizer(*found);
    if (const auto found = step("post_processor")) read_post_processor(*found);
}

void Tokenizer::read_vocabulary(const JsonValue& root) {
    const JsonValue model = root.at("model");
    if (const auto type = model.find("type"); !type || type->string() != "Unigram") unsupported("another model than Unigram");
    const JsonValue vocab = model.at("vocab");
    if (vocab.type() != JsonValue::kArray || vocab.size() == 0) malformed("no vocabulary");

    std::vector<std::string> pieces;
    pieces.reserve(vocab.size());
    double lowest = std::numeric_limits<double>::infinity();
    for (auto item = vocab.begin(); item.valid(); item.next()) {
        const JsonValue pair = item.value();
        if (pair.type() != JsonValue::kArray || pair.size() != 2) malformed("an entry of the vocabulary that is no pair", "[piece, score]");
        auto part = pair.begin();
        pieces.push_back(part.value().string());
        part.next();
        scores_.push_back(part.value().number());
        lowest = std::min(lowest, scores_.back());
        if (pieces.back().empty() || pieces.back().size() > kLongestPiece)
            malformed("a piece of " + std::to_string(pieces.back().size()) + " bytes", "1 to " + std::to_string(kLongestPiece));
    }
    const int64_t unk = model.at("unk_id").integer();
    if (unk < 0 || unk >= (int64_t)pieces.size()) malformed("unk_id " + std::to_string(unk), "an id of the vocabulary");
    unk_id_ = (int32_t)unk;
    unk_piece_ = pieces[(size_t)unk];
    unk_score_ = lowest - kUnknownPenalty;
    if (const auto fallback = model.find("byte_fallback"); fallback && !fallback->is_null()) byte_fallback_ = fallback->boolean();

    std::vector<std::pair<std::string_view, int32_t>> sorted;
    for (size_t id = 0; id < pieces.size(); ++id) sorted.emplace_back(pieces[id], (int32_t)id);
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 1; i < sorted.size(); ++i)
        if (sorted[i].first == sorted[i - 1].first) malformed("the piece " + in_quotes(sorted[i].first) + " with two ids");
    trie_ = Trie(sorted);

    hidden_.assign(pieces.size(), false);
    hidden_[(size_t)unk_id_] = true;
    std::fill(byte_ids_, byte_ids_ + 256, -1);
    std::vector<bool> special(pieces.size(), false);
    for (AddedToken& token : added_tokens(root)) {
        const auto id = (size_t)token.id;
        if (id > pieces.size()) malformed("an added token of id " + std::to_string(id), "ids without a gap");
        const auto same = std::lower_bound(sorted.begin(), sorted.end(), std::make_pair(std::string_view(token.content), 0));
        const bool is_piece = same != sorted.end() && same->first == token.content;
        if (id < pieces.size() ? pieces[id] != token.content : is_piece)
            malformed("the added token " + in_quotes(token.content) + " with the id " + std::to_string(id), "one id for a text, and one text for an id");
        if (id == pieces.size()) {
            pieces.push_back(token.content);
            special.push_back(false);
            hidden_.push_back(true);
        }
        special[id] = token.special;
        if (token.special) hidden_[id] = true;
        if (!token.special && !token.plain) unsupported("the added token " + in_quotes(token.content) + " with options");
        (token.special ? control_ : added_).push_back(std::move(token));
    }
    if (byte_fallback_)
        for (size_t id = 0; id < pieces.size(); ++id)
            if (const int byte = byte_of(pieces[id]); byte >= 0) {
                byte_ids_[byte] = (int32_t)id;
                hidden_[id] = true;
            }

    std::vector<Replacement> replacements;
    if (const auto decoder = root.find("decoder"); decoder && !decoder->is_null()) read_decoder(*decoder, replacements);
    starts_.reserve(pieces.size() + 1);
    for (size_t id = 0; id < pieces.size(); ++id) {
        starts_.push_back((uint32_t)bytes_.size());
        if (special[id]) continue;
        if (const int byte = byte_fallback_ ? byte_of(pieces[id]) : -1; byte >= 0) {
            bytes_ += (char)byte;
            continue;
        }
        std::string text = pieces[id];
        for (const Replacement& r : replacements) replace_all(text, r.from, r.to);
        bytes_ += text;
        if (bytes_.size() > 1u << 28) malformed("pieces of more than 256 MB");
    }
    starts_.push_back((uint32_t)bytes_.size());
}

std::vector<Tokenizer::AddedToken> Tokenizer::added_tokens(const JsonValue& root) {
    std::vector<AddedToken> tokens;
    const auto list = root.find("added_tokens");
    if (!list || list->is_null()) return tokens;
    for (auto item = list->begin(); item.valid(); item.next()) {
        const JsonValue value = item.value();
        const auto flag = [&](const char* key) {
            const auto found = value.find(key);
            return found && !found->is_null() && found->boolean();
        };
        const int64_t id = value.at("id").integer();
        if (id < 0 || id >= 1 << 24) malformed("an added token of id " + std::to_string(id), "ids without a gap");
        const bool plain = !flag("normalized") && !flag("lstrip") && !flag("rstrip");
        tokens.push_back({(int32_t)id, value.at("content").string(), flag("special"), flag("single_word"), plain});
        if (tokens.back().content.empty() || tokens.size() > 4096) malformed("an empty added token, or more than 4096");
    }
    std::sort(tokens.begin(), tokens.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
    for (size_t i = 1; i < tokens.size(); ++i)
        if (tokens[i].id == tokens[i - 1].id) malformed("two added tokens of id " + std::to_string(tokens[i].id), "one");
    return tokens;
}

void Tokenizer::read_normalizer(const JsonValue& normalizer) {
    each_step(normalizer, "normalizers", [&](const JsonValue& step) {
        const std::string type = step.at("type").string();
        if (type == "Prepend")
            normalizer_.push_back({{}, step.at("prepend").string()});
        else if (type == "Replace")
            normalizer_.push_back({plain_pattern(step), step.at("content").string()});
        else
            unsupported("the normalizer " + in_quotes(type));
        if (normalizer_.back().to.size() > kLongestPiece || normalizer_.size() > 16) malformed("a normalizer that makes texts too long");
    });
}

void Tokenizer::read_pre_tokenizer(const JsonValue& pre_tokenizer) {
    each_step(pre_tokenizer, "pretokenizers", [&](const JsonValue& step) {
        const std::string type = step.at("type").string();
        if (type != "Split" || !split_.empty() || step.at("behavior").string() != "Contiguous" || step.at("invert").boolean())
            unsupported("the pre-tokenizer " + in_quotes(type));
        split_ = plain_pattern(step);
    });
}

void Tokenizer::read_post_processor(const JsonValue& post_processor) {
    each_step(post_processor, "processors", [&](const JsonValue& step) {
        if (step.at("type").string() != "TemplateProcessing") unsupported("another post-processor than TemplateProcessing");
        const JsonValue single = step.at("single");
        bool text_was_there = false;
        for (auto item = single.begin(); item.valid(); item.next()) {
            if (text_was_there) unsupported("a template that appends tokens");
            if (item.value().find("Sequence")) {
                text_was_there = true;
                continue;
            }
            const std::string name = item.value().at("SpecialToken").at("id").string();
            const JsonValue ids = step.at("special_tokens").at(name).at("ids");
            for (auto id = ids.begin(); id.valid(); id.next()) {
                const int64_t value = id.value().integer();
                if (value < 0 || value >= vocab_size() || prefix_.size() >= 64) malformed("a template with the id " + std::to_string(value));
                prefix_.push_back((int32_t)value);
            }
        }
        if (!text_was_there) unsupported("a template without a text");
    });
}

void Tokenizer::read_decoder(const JsonValue& decoder, std::vector<Replacement>& replacements) {
    each_step(decoder, "decoders", [&](const JsonValue& step) {
        const std::string type = step.at("type").string();
        if (type == "Replace") {
            replacements.push_back({plain_pattern(step), step.at("content").string()});
            if (replacements.back().to.size() > kLongestPiece || replacements.size() > 16) malformed("a decoder that makes texts too long");
        } else if (type == "Strip") {
            if (step.at("content").string() != " " || step.at("start").integer() != 1 || step.at("stop").integer() != 0)
                unsupported("a decoder that strips something else than one space");
            strips_first_space_ = true;
        } else if (type != "ByteFallback" && type != "Fuse") {
            unsupported("the decoder " + in_quotes(type));
        }
    });
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
    return std::string_view(bytes_).substr(starts_[(size_t)id], starts_[(size_t)id + 1] - starts_[(size_t)id]);
}

bool Tokenizer::is_eos(int32_t id) const {
    return std::find(eos_token_ids_.begin(), eos_token_ids_.end(), id) != eos_token_ids_.end();
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, uint32_t flags) const {
    if (text.size() > kLargestText) throw Error(HELIUM_ERROR_PROMPT, "the text is too long", std::to_string(text.size()) + " bytes", "at most 1 GB");
    if (const size_t at = first_ill_formed(text); at < text.size())
        throw Error(HELIUM_ERROR_PROMPT, "the text is no UTF-8", "ill-formed bytes at " + std::to_string(at), "UTF-8", "convert it from its own encoding");
    if (flags >= 2 * HELIUM_ENCODE_CONTINUE)
        throw Error(HELIUM_ERROR_INVALID_ARGUMENT, "the flags have a bit that there is not", std::to_string(flags), "helium_encode_flags");
    const bool parse_special = flags & HELIUM_ENCODE_PARSE_SPECIAL;
    std::vector<int32_t> ids;
    if (!(flags & (HELIUM_ENCODE_NO_BOS | HELIUM_ENCODE_CONTINUE))) ids = prefix_;
    std::vector<const AddedToken*> tokens;
    for (const AddedToken& token : added_) tokens.push_back(&token);
    if (parse_special)
        for (const AddedToken& token : control_) {
            if (!token.plain) unsupported("the control token " + in_quotes(token.content) + " with options");
            tokens.push_back(&token);
        }
    bool first_bytes[256] = {};
    for (const AddedToken* token : tokens) first_bytes[(uint8_t)token->content[0]] = true;

    // Of tokens that start at one place the longest counts; a single word is text where it touches another.
    size_t start = 0;
    uint32_t part_flags = flags;
    const auto part = [&](size_t end) {
        if (end > start) encode_part(text.substr(start, end - start), part_flags, ids);
    };
    for (size_t at = 0; at < text.size() && !tokens.empty();) {
        const AddedToken* found = nullptr;
        if (first_bytes[(uint8_t)text[at]])
            for (const AddedToken* token : tokens)
                if (text.compare(at, token->content.size(), token->content) == 0 && token->content.size() > (found ? found->content.size() : 0))
                    found = token;
        if (!found) {
            ++at;
            continue;
        }
        const size_t end = at + found->content.size();
        if (!found->single_word || stands_alone(text, at, end)) {
            part(at);
            ids.push_back(found->id);
            start = end;
            part_flags &= ~(uint32_t)HELIUM_ENCODE_CONTINUE;  // what follows a token begins as a text does
        }
        at = end;
    }
    part(text.size());
    return ids;
}

std::string Tokenizer::normalized(std::string_view text, bool continues) const {
    std::string out(text);
    for (const Replacement& step : normalizer_) {
        if (!step.from.empty())
            replace_all(out, step.from, step.to);
        else if (!out.empty() && !continues)
            out.insert(0, step.to);
    }
    return out;
}

void Tokenizer::encode_part(std::string_view part, uint32_t flags, std::vector<int32_t>& ids) const {
    const std::string text = normalized(part, flags & HELIUM_ENCODE_CONTINUE);
    const bool parse_special = flags & HELIUM_ENCODE_PARSE_SPECIAL;
    const std::string_view view = text;
    if (split_.empty()) return viterbi(view, parse_special, ids);
    for (size_t at = 0; at < view.size();) {  // runs of the split pattern apart from the rest ("Contiguous")
        size_t end = at;
        while (view.compare(end, split_.size(), split_) == 0) end += split_.size();
        if (end == at) end = std::min(view.find(split_, at), view.size());
        viterbi(view.substr(at, end - at), parse_special, ids);
        at = end;
    }
}

void Tokenizer::viterbi(std::string_view text, bool parse_special, std::vector<int32_t>& ids) const {
    struct Place {
        double best = 0;
        int32_t id = 0;
        uint32_t length = 0;  // of the piece that ends here; 0: none does
    };
    std::vector<Place> places(text.size() + 1);
    const auto consider = [&](size_t start, size_t end, int32_t id, double score) {
        Place& place = places[end];
        score += places[start].best;
        if (place.length == 0 || score > place.best) place = {score, id, (uint32_t)(end - start)};
    };
    for (size_t start = 0; start < text.size();) {
        size_t after = start;
        next_character(text, after);
        bool single = false;
        uint32_t node = Trie::kRoot;
        for (size_t end = start; end < text.size();) {
            node = trie_.child(node, (uint8_t)text[end++]);
            if (node == Trie::kNone) break;
            const int32_t id = trie_.id(node);
            if (id < 0 || (!parse_special && hidden_[(size_t)id])) continue;
            consider(start, end, id, scores_[(size_t)id]);
            single = single || end == after;
        }
        if (!single) consider(start, after, unk_id_, unk_score_);
        start = after;
    }

    const size_t first = ids.size();
    for (size_t end = text.size(); end > 0; end -= places[end].length) ids.push_back((int32_t)end);  // for now: where each ends
    std::reverse(ids.begin() + (std::ptrdiff_t)first, ids.end());
    std::vector<int32_t> ends(ids.begin() + (std::ptrdiff_t)first, ids.end());
    ids.resize(first);
    for (size_t i = 0; i < ends.size(); ++i) {
        const Place& place = places[(size_t)ends[i]];
        if (place.id != unk_id_) {
            ids.push_back(place.id);
            continue;
        }
        const size_t start = (size_t)ends[i] - place.length;
        while (i + 1 < ends.size() && places[(size_t)ends[i + 1]].id == unk_id_) ++i;  // a run is one unknown
        const std::string_view unknown = text.substr(start, (size_t)ends[i] - start);
        bool spelled = byte_fallback_ && !(parse_special && unknown == unk_piece_);
        for (char c : unknown) spelled = spelled && byte_ids_[(uint8_t)c] >= 0;
        if (!spelled) {
            ids.push_back(unk_id_);
            continue;
        }
        for (char c : unknown) ids.push_back(byte_ids_[(uint8_t)c]);
    }
}

std::string Tokenizer::decode(const int32_t* ids, size_t count, uint32_t flags) const {
    TextStream stream(*this, strips_first_space_ && !(flags & HELIUM_ENCODE_CONTINUE));
    std::string text;
    for (size_t i = 0; i < count; ++i) {
        if (ids[i] < 0 || ids[i] >= vocab_size())
            throw Error(HELIUM_ERROR_TOKENIZER, "a token id is outside the vocabulary", std::to_string(ids[i]), "0 to " + std::to_string(vocab_size() - 1));
        stream.push(ids[i], text);
    }
    stream.finish(text);
    return text;
}

TextStream::TextStream(const Tokenizer& tokenizer, const std::vector<int32_t>& before) : tokenizer_(&tokenizer), strip_(tokenizer.strips_first_space()) {
    for (size_t i = 0; i < before.size() && strip_; ++i) strip_ = tokenizer.token_bytes(before[i]).empty();
    std::string shown;
    for (size_t i = before.size() - std::min<size_t>(before.size(), 3); i < before.size(); ++i)  // a character has at most 4 bytes
        utf8_.push(tokenizer.token_bytes(before[i]), shown);
}

void TextStream::push(int32_t id, std::string& out) {
    std::string_view bytes = tokenizer_->token_bytes(id);
    if (!bytes.empty() && strip_) {
        strip_ = false;
        if (bytes[0] == ' ') bytes.remove_prefix(1);
    }
    utf8_.push(bytes, out);
}

void TextStream::finish(std::string& out) {
    if (utf8_.is_open()) out += "\xef\xbf\xbd";
    utf8_.reset();
}

}  // namespace helium::core
