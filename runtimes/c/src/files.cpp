#include "files.h"

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <system_error>
#include <vector>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <io.h>
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace helium::core {
namespace fs = std::filesystem;
namespace {

int process_id() {
#if defined(_WIN32)
    return (int)GetCurrentProcessId();
#else
    return (int)getpid();
#endif
}

std::string reason(int code) { return std::generic_category().message(code); }

[[noreturn]] void unreadable(const fs::path& path, const std::string& why) {
    throw Error(HELIUM_ERROR_IO, in_quotes(text_of(path)) + " cannot be read", why, {}, "check the path and its permissions");
}

}  // namespace

fs::path path_of(std::string_view utf8) {
#if defined(_WIN32)
    return fs::u8path(utf8.begin(), utf8.end());
#else
    return fs::path(utf8);
#endif
}

std::string text_of(const fs::path& path) {
#if defined(_WIN32)
    return path.u8string();
#else
    return path.native();
#endif
}

#if defined(_WIN32)

MappedFile::MappedFile(const fs::path& path) {
    const HANDLE file = CreateFileW(path.c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
    if (file == INVALID_HANDLE_VALUE) unreadable(path, "error " + std::to_string(GetLastError()));
    LARGE_INTEGER size;
    const bool sized = GetFileSizeEx(file, &size) != 0;
    const HANDLE mapping = sized && size.QuadPart ? CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr) : nullptr;
    if (mapping) data_ = (char*)MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
    const DWORD error = GetLastError();
    if (mapping) CloseHandle(mapping);
    CloseHandle(file);
    if (!sized || (size.QuadPart && !data_)) unreadable(path, "error " + std::to_string(error));
    size_ = (size_t)size.QuadPart;
}

MappedFile::~MappedFile() {
    if (data_) UnmapViewOfFile(data_);
}

int64_t MappedFile::resident() const { return -1; }

ZeroedMemory::ZeroedMemory(size_t bytes) : size_(bytes) {
    data_ = (char*)VirtualAlloc(nullptr, bytes ? bytes : 1, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    if (!data_) throw std::bad_alloc();
}

ZeroedMemory::~ZeroedMemory() {
    if (data_) VirtualFree(data_, 0, MEM_RELEASE);
}

#else

MappedFile::MappedFile(const fs::path& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) unreadable(path, reason(errno));
    struct stat status;
    int error = fstat(file, &status) == 0 ? 0 : errno;
    if (!error && S_ISDIR(status.st_mode)) error = EISDIR;
    if (!error && !S_ISREG(status.st_mode)) error = EINVAL;
    if (!error && status.st_size > 0) {
        void* mapped = mmap(nullptr, (size_t)status.st_size, PROT_READ, MAP_SHARED, file, 0);
        if (mapped == MAP_FAILED) {
            error = errno;
        } else {
            data_ = (char*)mapped;
            size_ = (size_t)status.st_size;
        }
    }
    ::close(file);
    if (error == ENOMEM) throw std::bad_alloc();
    if (error) unreadable(path, reason(error));
}

MappedFile::~MappedFile() {
    if (data_) munmap(data_, size_);
}

int64_t MappedFile::resident() const {
    const auto page = (size_t)sysconf(_SC_PAGESIZE);
    std::vector<unsigned char> states((size_ + page - 1) / page);
#if defined(__APPLE__)
    if (size_ == 0 || mincore(data_, size_, (char*)states.data()) != 0) return -1;
#else
    if (size_ == 0 || mincore(data_, size_, states.data()) != 0) return -1;
#endif
    int64_t pages = 0;
    for (unsigned char state : states) pages += state & 1;
    return pages * (int64_t)page;
}

ZeroedMemory::ZeroedMemory(size_t bytes) : size_(bytes) {
    void* mapped = mmap(nullptr, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_NOHUGEPAGE)
    // A huge page is a whole head's 4096 tokens: the first few would take nearly all of the memory.
    madvise(mapped, bytes, MADV_NOHUGEPAGE);
#endif
    data_ = (char*)mapped;
}

ZeroedMemory::~ZeroedMemory() {
    if (data_) munmap(data_, size_ ? size_ : 1);
}

#endif

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

std::string read_file(const fs::path& path, size_t most, helium_status too_large) {
    const MappedFile file(path);
    if (file.size() > most)
        throw Error(too_large, text_of(path) + " is too large", std::to_string(file.size()) + " bytes", "at most " + std::to_string(most));
    return std::string(file.data(), file.size());
}

FileWriter::FileWriter(const fs::path& path) : path_(path), partial_(path) {
    static std::atomic<unsigned> count{0};  // several at once have names of their own
    partial_ += ".partial-" + std::to_string(process_id()) + "-" + std::to_string(count++);
#if defined(_WIN32)
    file_ = _wfopen(partial_.c_str(), L"wb");
#else
    const int opened = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (opened >= 0) file_ = fdopen(opened, "wb");
    if (opened >= 0 && !file_) {
        ::close(opened);
        ::unlink(partial_.c_str());
    }
#endif
    if (!file_) {
        if (errno == ENOMEM) throw std::bad_alloc();
        fail("be written");
    }
}

FileWriter::~FileWriter() {
    if (file_) std::fclose(file_);
    std::error_code ignored;
    if (!partial_.empty()) fs::remove(partial_, ignored);
}

void FileWriter::write(const void* data, size_t bytes) {
    if (bytes && std::fwrite(data, 1, bytes, file_) != bytes) fail("be written");
}

void FileWriter::commit() {
    bool whole = std::fflush(file_) == 0;
#if !defined(_WIN32)
    whole = whole && fsync(fileno(file_)) == 0;
#else
    whole = whole && _commit(_fileno(file_)) == 0;
#endif
    if (!whole) fail("be written");
    std::FILE* file = file_;
    file_ = nullptr;
    if (std::fclose(file) != 0) fail("be written");
    std::error_code error;
    fs::rename(partial_, path_, error);
    if (error) throw Error(HELIUM_ERROR_IO, in_quotes(text_of(path_)) + " cannot be replaced", error.message(), {}, "choose another file");
    partial_.clear();
}

void FileWriter::fail(const char* what) const {
    throw Error(HELIUM_ERROR_IO, in_quotes(text_of(path_)) + " cannot " + what, reason(errno), {}, "choose a folder with room that can be written to");
}

}  // namespace helium::core
