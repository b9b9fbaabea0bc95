#include "saved_conversation.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "error.h"
#include "json.h"
#include "sha256.h"

namespace helium::core {
namespace {

constexpr const char* kVersion = "1";
constexpr size_t kLargestHeader = 16u << 20;
constexpr const char* kRemedy = "delete the file, and begin the conversation anew";

const char* safetensors_name(const std::string& dtype) {
    if (dtype == "float32") return "F32";
    if (dtype == "float16") return "F16";
    if (dtype == "bfloat16") return "BF16";
    if (dtype == "int8") return "I8";
    if (dtype == "uint8") return "U8";
    throw Error(HELIUM_ERROR_BUNDLE, "keys and values of this bundle cannot be saved", in_quotes(dtype));
}

// Metadata but its own digest, as text that is hashed: keys ascending.
std::string hashed_metadata(const SavedState& state) {
    return "bundle=" + state.bundle + "\nformat=helium-conversation\nformat_version=" + kVersion + "\nkernels=" + state.kernels +
           "\nsampler=" + (state.sampler_begun ? std::to_string(state.sampler) : "") + "\nseed=" + std::to_string(state.seed) + "\n";
}

[[noreturn]] void damaged(const std::string& name, const std::string& found) {
    throw Error(HELIUM_ERROR_SESSION_FILE, name + " is no sound saved conversation", found, "a file as helium_conversation_save wrote it", kRemedy);
}

uint64_t unsigned_number(const std::string& name, const std::string& text) {
    if (text.empty() || text.size() > 20 || text.find_first_not_of("0123456789") != std::string::npos) damaged(name, in_quotes(text) + " for a number");
    errno = 0;
    const unsigned long long value = std::strtoull(text.c_str(), nullptr, 10);
    if (errno == ERANGE) damaged(name, in_quotes(text) + " for a number");
    return value;
}

struct Entry {
    std::string name;
    const char* dtype;
    std::vector<int64_t> shape;
    size_t bytes;
};

std::vector<Entry> entries(const std::vector<TensorSpec>& specs, size_t ids, int64_t held) {
    std::vector<Entry> all{{"token_ids", "I32", {(int64_t)ids}, ids * sizeof(int32_t)}};
    for (const TensorSpec& spec : specs)
        all.push_back({spec.name, safetensors_name(spec.dtype), {spec.dims[1], held, spec.dims[3]}, (size_t)(spec.dims[1] * held * spec.dims[3]) * bytes_of(spec.dtype)});
    return all;
}

}  // namespace

void save_conversation(const std::filesystem::path& path, const SavedState& state, Past& past) {
    const std::vector<TensorSpec>& specs = past.engine().past_specs();
    const int64_t held = past.length();
    const auto each_part = [&](const auto& part) {
        part(state.ids.data(), state.ids.size() * sizeof(int32_t));
        for (size_t i = 0; i < specs.size(); ++i)
            for (int64_t head = 0; head < past.heads(i); ++head) part(past.slots(i, head), (size_t)held * past.row_bytes(i));
    };
    Sha256 hash;
    const std::string metadata = hashed_metadata(state);
    hash.update(metadata.data(), metadata.size());
    each_part([&](const void* data, size_t bytes) { hash.update(data, bytes); });

    std::string header = "{\"__metadata__\":{\"format\":\"helium-conversation\",\"format_version\":\"" + std::string(kVersion) + "\",\"bundle\":\"" + state.bundle +
                         "\",\"kernels\":\"" + state.kernels + "\",\"seed\":\"" + std::to_string(state.seed) + "\",\"sampler\":\"" +
                         (state.sampler_begun ? std::to_string(state.sampler) : "") + "\",\"sha256\":\"" + hash.hex() + "\"}";
    size_t at = 0;
    for (const Entry& entry : entries(specs, state.ids.size(), held)) {
        header += ",\"" + entry.name + "\":{\"dtype\":\"" + entry.dtype + "\",\"shape\":[";
        for (size_t i = 0; i < entry.shape.size(); ++i) header += (i ? "," : "") + std::to_string(entry.shape[i]);
        header += "],\"data_offsets\":[" + std::to_string(at) + "," + std::to_string(at + entry.bytes) + "]}";
        at += entry.bytes;
    }
    header += "}";
    header.append((8 - header.size() % 8) % 8, ' ');
    FileWriter file(path);
    uint8_t size[8];
    for (int i = 0; i < 8; ++i) size[i] = (uint8_t)((uint64_t)header.size() >> (8 * i));
    file.write(size, 8);
    file.write(header.data(), header.size());
    each_part([&](const void* data, size_t bytes) { file.write(data, bytes); });
    file.commit();
}

SavedConversation::SavedConversation(std::string_view bytes, const std::string& name, const SavedOf& of) {
    uint64_t size = 0;
    if (bytes.size() < 8) damaged(name, std::to_string(bytes.size()) + " bytes");
    for (int i = 0; i < 8; ++i) size |= (uint64_t)(uint8_t)bytes[(size_t)i] << (8 * i);
    if (size > kLargestHeader || size > bytes.size() - 8) damaged(name, "a header of " + std::to_string(size) + " bytes");
    const Json document(std::string(bytes.substr(8, size)), name, HELIUM_ERROR_SESSION_FILE);
    const std::string_view data = bytes.substr(8 + size);
    const JsonValue root = document.root();

    const JsonValue metadata = root.at("__metadata__");
    if (const auto format = metadata.find("format"); !format || format->type() != JsonValue::kString || format->string() != "helium-conversation")
        damaged(name, "another safetensors file");
    if (const std::string version = metadata.at("format_version").string(); version != kVersion)
        throw Error(HELIUM_ERROR_FORMAT_VERSION, name + " was written by another version of this library", "format version " + in_quotes(version), kVersion,
                    "use the library that wrote it, or begin the conversation anew");
    state.bundle = metadata.at("bundle").string();
    state.kernels = metadata.at("kernels").string();
    if (state.bundle != of.bundle)
        throw Error(HELIUM_ERROR_SESSION_FILE, name + " is a conversation with another bundle", in_quotes(state.bundle), of.bundle,
                    "open the bundle that it was saved with, or begin anew");
    if (state.kernels != of.kernels)
        throw Error(HELIUM_ERROR_SESSION_FILE, name + " was saved by other kernels", in_quotes(state.kernels), of.kernels,
                    "open the bundle with the kernels that it was saved with, or begin anew");
    state.seed = unsigned_number(name, metadata.at("seed").string());
    const std::string sampler = metadata.at("sampler").string();
    state.sampler_begun = !sampler.empty();
    if (state.sampler_begun) state.sampler = unsigned_number(name, sampler);

    const auto shape_of = [&](const JsonValue& entry, size_t rank, size_t dim) {
        const JsonValue shape = entry.at("shape");
        if (shape.type() != JsonValue::kArray || shape.size() != rank) damaged(name, "a tensor of another rank");
        auto item = shape.begin();
        for (size_t i = 0; i < dim; ++i) item.next();
        const int64_t value = item.value().integer();
        if (value < 0 || value > 1 << 24) damaged(name, "a dimension of " + std::to_string(value));
        return value;
    };
    const auto count = (size_t)shape_of(root.at("token_ids"), 1, 0);
    if (!of.past_specs.empty()) held = shape_of(root.at(of.past_specs[0].name), 3, 1);
    if (held > (int64_t)count) damaged(name, "keys and values of more tokens than there are");

    // Everything must lie where save_conversation puts it: in order, without gaps.
    const std::vector<Entry> expected = entries(of.past_specs, count, held);
    size_t at = 0;
    for (size_t k = 0; k < expected.size(); ++k) {
        const Entry& entry = expected[k];
        const JsonValue found = root.at(entry.name);
        bool same = found.at("dtype").string() == entry.dtype;
        for (size_t i = 0; i < entry.shape.size(); ++i) same = same && shape_of(found, entry.shape.size(), i) == entry.shape[i];
        const JsonValue offsets = found.at("data_offsets");
        if (offsets.type() != JsonValue::kArray || offsets.size() != 2) damaged(name, "a tensor without its place");
        auto item = offsets.begin();
        const int64_t begin = item.value().integer();
        item.next();
        same = same && begin == (int64_t)at && item.value().integer() == (int64_t)(at + entry.bytes);
        if (!same || entry.bytes > data.size() - at) damaged(name, "the tensor " + in_quotes(entry.name) + " in another form, or cut off");
        if (k > 0) tensors_.push_back(data.data() + at);
        at += entry.bytes;
    }
    if (root.size() != expected.size() + 1 || at != data.size()) damaged(name, "more than what is listed");
    Sha256 hash;
    const std::string hashed = hashed_metadata(state);
    hash.update(hashed.data(), hashed.size());
    hash.update(data.data(), data.size());
    if (hash.hex() != metadata.at("sha256").string()) damaged(name, "another content than was written (its SHA-256 differs)");

    state.ids.resize(count);
    if (count) std::memcpy(state.ids.data(), data.data(), count * sizeof(int32_t));
    for (int32_t id : state.ids)
        if (id < 0 || id >= of.vocab_size) damaged(name, "the token id " + std::to_string(id));
}

void SavedConversation::fill(Past& past) const {
    for (size_t i = 0; i < tensors_.size(); ++i) {
        const size_t bytes = (size_t)held * past.row_bytes(i);
        for (int64_t head = 0; head < past.heads(i) && bytes; ++head) std::memcpy(past.slots(i, head), tensors_[i] + (size_t)head * bytes, bytes);
    }
    past.restored(held);
}

}  // namespace helium::core
