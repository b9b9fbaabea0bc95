// The bundle that tests run, loaded once.
#pragma once

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "helium_onnx.hpp"

inline std::string bundle_path() { return std::getenv("HELIUM_BUNDLE"); }

inline helium::Model& model() {
    static helium::Model loaded(bundle_path());
    return loaded;
}

// Whether a text gives the same bits however it is split into calls: our kernels; and float32 keeps its tokens by far.
inline bool keeps_bits() {
    const helium_model_info info = model().info();
    return info.kernels == HELIUM_KERNELS_NATIVE || std::string(info.recipe) == "cpu-fp32";
}

// The status that `body` fails with; OK where it does not.
template <class Body>
helium_status status_of(const Body& body) {
    try {
        body();
    } catch (const helium::Error& error) {
        return error.status();
    }
    return HELIUM_OK;
}

struct Generated {
    std::string text;
    std::vector<int32_t> ids;
    helium::Result result;
};

inline Generated generate(helium::Conversation& conversation, helium::Request request) {
    Generated generated;
    request.on_text = [&](std::string_view text) { return (generated.text += text, true); };
    request.on_token = [&](int32_t id) { return (generated.ids.push_back(id), true); };
    generated.result = conversation.generate(request);
    return generated;
}

inline helium::Request request(std::string prompt, int64_t tokens = 24) {
    helium::Request made(std::move(prompt));
    made.max_new_tokens = tokens;
    return made;
}

// A folder of its own that goes with it.
struct TemporaryFolder {
    std::filesystem::path path;
    TemporaryFolder() {
        static int count = 0;
        path = std::filesystem::temp_directory_path() / ("helium-tests-" + std::to_string(std::rand()) + "-" + std::to_string(++count));
        std::filesystem::create_directories(path);
    }
    ~TemporaryFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path, ignored);
    }
};

inline std::string read(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

inline void write(const std::filesystem::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }
