// Files: mapped, read, written in one step. Paths are UTF-8 on every system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "error.h"

namespace helium::core {

std::filesystem::path path_of(std::string_view utf8);
std::string text_of(const std::filesystem::path& path);

// A file's pages, read-only, as they are needed.
class MappedFile {
   public:
    MappedFile() = default;
    explicit MappedFile(const std::filesystem::path& path);  // throws IO
    MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }
    MappedFile& operator=(MappedFile&& other) noexcept;
    ~MappedFile();

    const char* data() const { return data_; }
    size_t size() const { return size_; }
    int64_t resident() const;  // bytes in memory now; -1 where the system does not tell

   private:
    char* data_ = nullptr;
    size_t size_ = 0;
};

// Zeros that take memory page by page, as they are written.
class ZeroedMemory {
   public:
    explicit ZeroedMemory(size_t bytes);  // throws bad_alloc
    ZeroedMemory(ZeroedMemory&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr; }
    ZeroedMemory(const ZeroedMemory&) = delete;
    ~ZeroedMemory();

    char* data() const { return data_; }
    size_t size() const { return size_; }

   private:
    char* data_ = nullptr;
    size_t size_ = 0;
};

// The whole of a small file. Throws IO, and `too_large` where it has more than `most` bytes.
std::string read_file(const std::filesystem::path& path, size_t most, helium_status too_large);

// A file beside `path` that takes its place in one step, and that only its owner may read. Without `commit` nothing
// changes. Throws IO.
class FileWriter {
   public:
    explicit FileWriter(const std::filesystem::path& path);
    FileWriter(const FileWriter&) = delete;
    ~FileWriter();
    void write(const void* data, size_t bytes);
    void commit();

   private:
    [[noreturn]] void fail(const char* what) const;
    std::filesystem::path path_, partial_;
    std::FILE* file_ = nullptr;
};

}  // namespace helium::core
