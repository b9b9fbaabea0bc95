// Out of memory at every allocation: each call answers HELIUM_ERROR_OUT_OF_MEMORY, frees all that it took, and what was
// open before goes on as if the call had not been.
#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <string>

#include "helium_onnx.h"

namespace {

std::atomic<long> g_count{0}, g_live{0};
thread_local long t_fail_at = -1;  // of this thread's allocations from now on; -1: none

bool fails() { return t_fail_at >= 0 && t_fail_at-- == 0; }

void* taken(size_t bytes) {
    if (fails()) return nullptr;
    void* memory = std::malloc(bytes ? bytes : 1);
    if (memory) ++g_count, ++g_live;
    return memory;
}

void given_back(void* memory) {
    if (memory) --g_live;
    std::free(memory);
}

}  // namespace

void* operator new(size_t bytes) {
    void* memory = taken(bytes);
    if (!memory) throw std::bad_alloc();
    return memory;
}
void* operator new[](size_t bytes) { return operator new(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return taken(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return taken(bytes); }
void operator delete(void* memory) noexcept { given_back(memory); }
void operator delete[](void* memory) noexcept { given_back(memory); }
void operator delete(void* memory, size_t) noexcept { given_back(memory); }
void operator delete[](void* memory, size_t) noexcept { given_back(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { given_back(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { given_back(memory); }

extern "C" {
void* __real_mmap(void*, size_t, int, int, int, off_t);
void* __wrap_mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) {
    if (fails()) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return __real_mmap(at, bytes, protection, flags, file, offset);
}
}

namespace {

int g_failures = 0;

// Runs `call` with its first, second, ... allocation failing until it succeeds; beyond `every` of them only some.
void exhaust(const char* name, const std::function<helium_status()>& call, long every = 2000) {
    if (call() != HELIUM_OK) {  // once as it is: what is made only once, is made
        std::printf("%s: does not work with all memory: %s\n", name, helium_error_text());
        ++g_failures;
        return;
    }
    long tried = 0;
    bool again = false;  // what a thread of ONNX Runtime keeps when it first runs a kernel is no leak: it comes only once
    for (long at = 0;; at += again ? 0 : at < every ? 1 : 97) {
        const long before = g_live;
        t_fail_at = at;
        const helium_status status = call();
        const bool reached = t_fail_at < 0;
        t_fail_at = -1;
        ++tried;
        // One that nobody needs to succeed may fail unnoticed (a sort's buffer): then the call goes well.
        if (status != HELIUM_OK && status != HELIUM_ERROR_OUT_OF_MEMORY) {
            std::printf("%s: allocation %ld: %s: %s\n", name, at, helium_status_name(status), helium_error_text());
            ++g_failures;
        }
        again = g_live != before && !again;
        if (again) continue;
        if (g_live != before) {
            std::printf("%s: allocation %ld: %ld allocations are not given back\n", name, at, (long)g_live - before);
            ++g_failures;
        }
        if (!reached) break;
    }
    std::printf("%s: %ld failed allocations\n", name, tried - 1);
}

int count_token(void* user, int32_t) { return ++*(int*)user, 0; }

}  // namespace

int main() {
    const char* bundle = std::getenv("HELIUM_BUNDLE");
    if (!bundle) return std::fputs("HELIUM_BUNDLE is not set: the path of a bundle\n", stderr), 2;
    const std::string session = std::string(std::getenv("TMPDIR") ? std::getenv("TMPDIR") : "/tmp") + "/helium-memory-session";

    exhaust("plan", [&] {
        helium_memory_plan plan;
        plan.struct_size = sizeof plan;
        return helium_plan_memory(bundle, nullptr, &plan);
    });
    exhaust("open a model", [&] {
        helium_model* model = nullptr;
        const helium_status status = helium_model_open(bundle, nullptr, &model);
        if (status == HELIUM_OK) helium_model_close(model);
        return status;
    }, 500);
    helium_model* model = nullptr;
    helium_conversation* conversation = nullptr;
    if (helium_model_open(bundle, nullptr, &model) != HELIUM_OK) return std::puts(helium_error_text()), 1;
    exhaust("encode", [&] {
        size_t count;
        return helium_encode(model, "To insert a table,\n\xf0\x9f\x91\x8d choose Table.", HELIUM_TO_NUL, 0, nullptr, 0, &count);
    });
    exhaust("open a conversation", [&] {
        helium_conversation* made = nullptr;
        const helium_status status = helium_conversation_open(model, nullptr, &made);
        if (status == HELIUM_OK) helium_conversation_close(made);
        return status;
    });
    if (helium_conversation_open(model, nullptr, &conversation) != HELIUM_OK) return std::puts(helium_error_text()), 1;
    const char* const stop[] = {"never", "nor this"};
    int tokens = 0;
    helium_request request;
    helium_request_init(&request);
    request.prompt = "To insert a table,";
    request.max_new_tokens = 12;
    request.temperature = 1;
    request.top_k = 50;
    request.top_p = 0.95;
    request.repetition_penalty = 1.1;
    request.seed = 5;
    request.has_seed = 1;
    request.stop = stop;
    request.stop_count = 2;
    request.on_token = count_token;
    request.user = &tokens;
    // Each time in a conversation of its own, as buffers that are kept would hide what the first use asks for.
    exhaust("generate", [&] {
        helium_conversation* fresh = nullptr;
        const long fail_at = t_fail_at;
        t_fail_at = -1;
        if (helium_conversation_open(model, nullptr, &fresh) != HELIUM_OK) return HELIUM_ERROR_INTERNAL;
        t_fail_at = fail_at;
        const helium_status status = helium_generate(fresh, &request, nullptr);
        const long left = t_fail_at;
        t_fail_at = -1;
        // Whatever failed, it can go on.
        if (status != HELIUM_OK && helium_generate(fresh, &request, nullptr) != HELIUM_OK) return HELIUM_ERROR_INTERNAL;
        helium_conversation_close(fresh);
        t_fail_at = left;
        return status;
    });
    if (helium_generate(conversation, &request, nullptr) != HELIUM_OK) return std::puts(helium_error_text()), 1;
    exhaust("save", [&] { return helium_conversation_save(conversation, session.c_str()); });
    exhaust("restore", [&] {
        helium_conversation* made = nullptr;
        const helium_status status = helium_conversation_restore(model, session.c_str(), nullptr, &made);
        if (status == HELIUM_OK) helium_conversation_close(made);
        return status;
    });
    helium_conversation_close(conversation);
    helium_model_close(model);
    std::remove(session.c_str());
    std::printf(g_failures ? "%d failures\n" : "all of them answered and freed\n", g_failures);
    return g_failures != 0;
}
