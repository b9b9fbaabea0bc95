// A bundle's folder and its manifest, helium.json (helium_onnx/manifest.py writes it).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace helium::core {

// One input or output of a graph. A dimension is -1 where it is a name (it varies).
struct TensorSpec {
    std::string name, dtype;
    std::vector<int64_t> dims;
};

struct Graph {
    std::string file;
    std::vector<TensorSpec> inputs, outputs;
};

// A tensor in the weights' file.
struct StoredTensor {
    std::string name, dtype;
    std::vector<int64_t> shape;
    int64_t offset, nbytes;
};

struct BundleFile {
    std::string path, sha256;
    int64_t size;
};

struct Bundle {
    std::filesystem::path folder;
    std::string sha256;    // identifies it
    std::string recipe;    // "cpu-int4"
    std::string operators; // the form of its graphs: "onnxruntime", "standard", "static", ...
    int64_t vocab_size = 0, context_length = 0, hidden_size = 0, intermediate_size = 0, num_attention_heads = 0;
    int64_t bos_token_id = -1;  // -1: none
    std::vector<int32_t> eos_token_ids;
    std::map<std::string, Graph> graphs;
    std::vector<StoredTensor> tensors;
    std::vector<BundleFile> files;

    // Reads helium.json, and checks that each file is a regular one of its size inside the folder.
    // Throws BUNDLE, FORMAT_VERSION, INTEGRITY, IO.
    static Bundle open(const std::filesystem::path& folder);

    // The manifest alone; `name` stands in errors. Throws BUNDLE, FORMAT_VERSION, INTEGRITY.
    static Bundle parse(std::string text, const std::string& name, bool check_digest = true);

    // Throws BUNDLE where there is no such graph.
    const Graph& graph(const std::string& name) const;
    bool has_graph(const std::string& name) const { return graphs.count(name) != 0; }
    std::filesystem::path path(const std::string& file) const;
    int64_t file_size(const std::string& file) const;

    // Hashes files against the manifest; all, or all but the weights. Throws INTEGRITY.
    void check_digests(bool weights) const;
};

// The weights of all graphs.
inline constexpr const char* kWeightsFile = "onnx/model.onnx_data";

size_t bytes_of(const std::string& dtype);  // of one element; throws BUNDLE for one that is not known

}  // namespace helium::core
