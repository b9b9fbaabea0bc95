#include "bundle.h"

#include <algorithm>
#include <system_error>

#include "error.h"
#include "files.h"
#include "json.h"
#include "sha256.h"

namespace helium::core {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kFormatVersion = 1;
constexpr size_t kLargestManifest = 256u << 20;
constexpr const char* kDigest = "manifest_sha256";
constexpr const char* kRemedy = "copy or download the bundle again, or export it anew";

[[noreturn]] void damaged(const fs::path& folder, const std::string& found) {
    throw Error(HELIUM_ERROR_INTEGRITY, text_of(folder) + " is damaged", found, {}, kRemedy);
}

// A path that stays in its folder on every system: relative, in its shortest form.
void check_path(const std::string& path) {
    bool plain = !path.empty() && path.back() != '/';
    for (char c : path) plain = plain && c != '\\' && c != ':' && (unsigned char)c >= 0x20 && c != 0x7f;
    for (size_t at = 0; plain && at <= path.size();) {
        const size_t end = std::min(path.find('/', at), path.size());
        const std::string part = path.substr(at, end - at);
        plain = !part.empty() && part != "." && part != "..";
        at = end + 1;
    }
    if (!plain)
        throw Error(HELIUM_ERROR_BUNDLE, "helium.json is not a valid manifest", in_quotes(path), "a plain path inside the bundle", kRemedy);
}

int64_t size_at(const JsonValue& value, const char* key) {
    const int64_t size = value.at(key).integer();
    if (size < 0) throw Error(HELIUM_ERROR_BUNDLE, "helium.json is not a valid manifest", std::to_string(size), std::string(key) + " of 0 or more", kRemedy);
    return size;
}

std::vector<TensorSpec> specs(const JsonValue& list) {
    std::vector<TensorSpec> out;
    for (auto item = list.begin(); item.valid(); item.next()) {
        const JsonValue value = item.value();
        TensorSpec spec{value.at("name").string(), value.at("dtype").string(), {}};
        const JsonValue dims = value.at("dims");
        for (auto dim = dims.begin(); dim.valid(); dim.next())
            spec.dims.push_back(dim.value().type() == JsonValue::kNumber ? dim.value().integer() : -1);
        out.push_back(std::move(spec));
    }
    return out;
}

void read_model_config(const JsonValue& config, Bundle& bundle) {
    bundle.vocab_size = config.at("vocab_size").integer();
    bundle.context_length = config.at("max_position_embeddings").integer();
    bundle.hidden_size = config.at("hidden_size").integer();
    bundle.intermediate_size = config.at("intermediate_size").integer();
    bundle.num_attention_heads = config.at("num_attention_heads").integer();
    // Beyond all that there is, and products of two do not overflow.
    for (int64_t size : {bundle.vocab_size, bundle.context_length, bundle.hidden_size, bundle.intermediate_size, bundle.num_attention_heads})
        if (size < 1 || size > 1 << 24) throw Error(HELIUM_ERROR_BUNDLE, "the bundle's model has impossible sizes", std::to_string(size), "1 to 2^24");
    if (const auto bos = config.find("bos_token_id"); bos && !bos->is_null()) bundle.bos_token_id = bos->integer();
    const auto eos = config.find("eos_token_id");
    const auto add = [&](int64_t id) {
        if (id < 0 || id >= bundle.vocab_size)
            throw Error(HELIUM_ERROR_BUNDLE, "the bundle's eos_token_id is outside the vocabulary", std::to_string(id));
        bundle.eos_token_ids.push_back((int32_t)id);
    };
    if (eos && eos->type() == JsonValue::kArray)
        for (auto item = eos->begin(); item.valid(); item.next()) add(item.value().integer());
    else if (eos && !eos->is_null())
        add(eos->integer());
}

// What is wrong with a file of the folder; empty where it is a regular file inside, of `size` bytes (-1: any).
std::string flaw(const fs::path& folder, const std::string& name, int64_t size) {
    std::error_code error;
    const fs::path real = fs::canonical(folder / path_of(name), error);
    if (error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory) return name + " is missing";
    if (error) return name + " cannot be read: " + error.message();
    const fs::path root = fs::canonical(folder, error);
    if (error) return text_of(folder) + " cannot be read: " + error.message();
    if (std::mismatch(root.begin(), root.end(), real.begin(), real.end()).first != root.end())
        return name + " is a link out of the folder (to " + text_of(real) + ")";
    if (!fs::is_regular_file(real, error)) return name + " is not a regular file";
    const auto found = (int64_t)fs::file_size(real, error);
    if (error) return name + " cannot be read: " + error.message();
    if (size >= 0 && found != size) return name + " has " + std::to_string(found) + " bytes, not " + std::to_string(size);
    return {};
}

}  // namespace

Bundle Bundle::open(const fs::path& folder) {
    std::error_code error;
    if (!fs::is_directory(folder, error))
        throw Error(HELIUM_ERROR_BUNDLE, "there is no folder " + in_quotes(text_of(folder)), {}, "a bundle", "check the path, or make the bundle: helium-onnx export");
    const fs::path file = folder / "helium.json";
    if (!fs::exists(fs::symlink_status(file, error)))
        throw Error(HELIUM_ERROR_BUNDLE, text_of(folder) + " has no helium.json", {}, "a bundle", "check the path, or make the bundle: helium-onnx export");
    if (const std::string found = flaw(folder, "helium.json", -1); !found.empty()) damaged(folder, found);

    Bundle bundle = parse(read_file(file, kLargestManifest, HELIUM_ERROR_INTEGRITY), text_of(file));
    bundle.folder = folder;
    for (const BundleFile& record : bundle.files)
        if (const std::string found = flaw(folder, record.path, record.size); !found.empty()) damaged(folder, found);
    return bundle;
}

Bundle Bundle::parse(std::string text, const std::string& name, bool check_digest) {
    const Json document(std::move(text), name, HELIUM_ERROR_INTEGRITY);
    const JsonValue root = document.root();
    if (root.type() != JsonValue::kObject) throw Error(HELIUM_ERROR_BUNDLE, name + " is not a manifest", root.type_name(), "an object", kRemedy);
    const auto version = root.find("format_version");
    if (!version || version->type() != JsonValue::kNumber)
        throw Error(HELIUM_ERROR_BUNDLE, name + " is not a manifest", "no format_version", {}, kRemedy);
    if (const int64_t number = version->integer(); number > kFormatVersion)
        throw Error(HELIUM_ERROR_FORMAT_VERSION, name + " was written by a newer helium-onnx", "format_version " + std::to_string(number),
                    std::to_string(kFormatVersion) + " at most", "update this library");
    else if (number < 1)
        throw Error(HELIUM_ERROR_BUNDLE, name + " is not a manifest", "format_version " + std::to_string(number), {}, kRemedy);

    Bundle bundle;
    std::string canonical;
    root.canonical(canonical, kDigest);
    bundle.sha256 = sha256_hex(canonical.data(), canonical.size());
    if (const auto stated = root.find(kDigest); check_digest && (!stated || stated->type() != JsonValue::kString || stated->string() != bundle.sha256))
        throw Error(HELIUM_ERROR_INTEGRITY, name + " was changed", "content of SHA-256 " + bundle.sha256,
                    stated && stated->type() == JsonValue::kString ? stated->string() : "its manifest_sha256", kRemedy);
    if (const std::string task = root.at("task").string(); task != "text-generation")
        throw Error(HELIUM_ERROR_BUNDLE, name + " does not generate text", "a bundle for " + task, "text-generation",
                    "export with --task text-generation");

    const JsonValue recipe = root.at("recipe");
    bundle.recipe = recipe.at("name").string();
    bundle.operators = recipe.at("graph").at("operators").string();
    read_model_config(root.at("model_config"), bundle);
    const JsonValue graphs = root.at("graphs");
    for (auto item = graphs.begin(); item.valid(); item.next()) {
        Graph graph{item.value().at("file").string(), specs(item.value().at("inputs")), specs(item.value().at("outputs"))};
        check_path(graph.file);
        bundle.graphs.emplace(item.key().string(), std::move(graph));
    }
    const JsonValue files = root.at("files");
    for (auto item = files.begin(); item.valid(); item.next()) {
        BundleFile record{item.value().at("path").string(), item.value().at("sha256").string(), size_at(item.value(), "size")};
        check_path(record.path);
        bundle.files.push_back(std::move(record));
    }
    const JsonValue tensors = root.at("tensors");
    const int64_t weights = bundle.file_size(kWeightsFile);
    for (auto item = tensors.begin(); item.valid(); item.next()) {
        const JsonValue value = item.value();
        StoredTensor tensor{value.at("name").string(), value.at("dtype").string(), {}, size_at(value, "offset"), size_at(value, "nbytes")};
        const JsonValue shape = value.at("shape");
        for (auto dim = shape.begin(); dim.valid(); dim.next()) tensor.shape.push_back(dim.value().integer());
        if (tensor.offset > weights || tensor.nbytes > weights - tensor.offset)
            throw Error(HELIUM_ERROR_BUNDLE, "helium.json is not a valid manifest", "tensor " + in_quotes(tensor.name) + " ends behind the weights' file",
                        {}, kRemedy);
        bundle.tensors.push_back(std::move(tensor));
    }
    for (const auto& [name, graph] : bundle.graphs)
        if (bundle.file_size(graph.file) < 0)
            throw Error(HELIUM_ERROR_BUNDLE, "helium.json is not a valid manifest", "graph " + in_quotes(name) + " has a file that files does not list", {}, kRemedy);
    return bundle;
}

const Graph& Bundle::graph(const std::string& name) const {
    const auto found = graphs.find(name);
    if (found == graphs.end())
        throw Error(HELIUM_ERROR_BUNDLE, text_of(folder) + " has no graph " + in_quotes(name), "recipe " + recipe, {}, "export with a recipe for CPUs, as cpu-int4");
    return found->second;
}

fs::path Bundle::path(const std::string& file) const { return folder / path_of(file); }

int64_t Bundle::file_size(const std::string& file) const {
    for (const BundleFile& record : files)
        if (record.path == file) return record.size;
    return -1;
}

void Bundle::check_digests(bool weights) const {
    for (const BundleFile& record : files) {
        if (!weights && record.path == kWeightsFile) continue;
        const MappedFile file(path(record.path));
        if ((int64_t)file.size() != record.size || sha256_hex(file.data(), file.size()) != record.sha256)
            damaged(folder, record.path + " has another content than was exported (its SHA-256 differs)");
    }
}

size_t bytes_of(const std::string& dtype) {
    if (dtype == "float32" || dtype == "int32") return 4;
    if (dtype == "float16" || dtype == "bfloat16") return 2;
    if (dtype == "int8" || dtype == "uint8" || dtype == "bool") return 1;
    if (dtype == "int64") return 8;
    throw Error(HELIUM_ERROR_BUNDLE, "the bundle has a dtype that this library does not know", in_quotes(dtype));
}

}  // namespace helium::core
