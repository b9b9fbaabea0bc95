// The natives of org.heliumonnx.Native, over helium_onnx.h.
//
// Text crosses as UTF-8 in byte[] (see Utf8.java). A failure becomes a HeliumException; whatever else Java may throw here
// (OutOfMemoryError, NullPointerException) is left pending for it. Handles are tickets, which libhelium_onnx checks.
#include <jni.h>

#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "helium_onnx.h"

namespace {

static_assert(sizeof(jint) == sizeof(int32_t) && sizeof(jlong) >= sizeof(void*), "token ids and handles cross as they are");

// Looked up once: global references, and ids that hold as long as their classes do.
struct Java {
    jclass native, exception, null_pointer, out_of_memory, model_info, memory_plan, result;
    jmethodID new_exception, new_model_info, new_memory_plan, new_result;
    jmethodID on_text, on_token, on_prefill;
} java;

// Thrown where a Java exception is pending, to leave the native function.
struct Pending {};

// ---- From Java

void require(JNIEnv* env, jobject object, const char* name) {
    if (object) return;
    env->ThrowNew(java.null_pointer, name);
    throw Pending();
}

std::string text_of(JNIEnv* env, jbyteArray utf8, const char* name) {
    require(env, utf8, name);
    std::string text((size_t)env->GetArrayLength(utf8), '\0');
    env->GetByteArrayRegion(utf8, 0, (jsize)text.size(), (jbyte*)text.data());
    return text;
}

std::vector<int32_t> ids_of(JNIEnv* env, jintArray array, const char* name) {
    require(env, array, name);
    std::vector<int32_t> ids((size_t)env->GetArrayLength(array));
    env->GetIntArrayRegion(array, 0, (jsize)ids.size(), (jint*)ids.data());
    return ids;
}

helium_model* model_of(jlong handle) { return (helium_model*)(intptr_t)handle; }
helium_conversation* conversation_of(jlong handle) { return (helium_conversation*)(intptr_t)handle; }

// ---- To Java

template <class T>
T* made(T* object) {
    if (!object) throw Pending();
    return object;
}

jsize length_of(JNIEnv* env, size_t size) {
    if (size <= INT32_MAX) return (jsize)size;
    env->ThrowNew(java.out_of_memory, "more elements than a Java array holds");
    throw Pending();
}

jbyteArray bytes_of(JNIEnv* env, const char* text, size_t size) {
    const jbyteArray bytes = made(env->NewByteArray(length_of(env, size)));
    env->SetByteArrayRegion(bytes, 0, (jsize)size, (const jbyte*)text);
    return bytes;
}

jbyteArray bytes_of(JNIEnv* env, const std::string& text) { return bytes_of(env, text.data(), text.size()); }

jintArray array_of(JNIEnv* env, const std::vector<int32_t>& ids, size_t count) {
    const jintArray array = made(env->NewIntArray(length_of(env, count)));
    env->SetIntArrayRegion(array, 0, (jsize)count, (const jint*)ids.data());
    return array;
}

[[noreturn]] void fail(JNIEnv* env, helium_status status, const std::string& text) {
    const jobject exception = made(env->NewObject(java.exception, java.new_exception, (jint)status, bytes_of(env, text)));
    env->Throw((jthrowable)exception);
    throw Pending();
}

void check(JNIEnv* env, helium_status status) {
    if (env->ExceptionCheck()) throw Pending();  // of a listener, which comes before what it led to
    if (status != HELIUM_OK) fail(env, status, helium_error_text());
}

// Runs a native's body; what is thrown in it must not cross into Java's frames.
template <class Body>
auto native(JNIEnv* env, const Body& body) -> decltype(body()) {
    try {
        try {
            return body();
        } catch (const std::bad_alloc&) {
            fail(env, HELIUM_ERROR_OUT_OF_MEMORY, "out of memory: close other apps, or take a shorter text");
        } catch (const std::exception& error) {
            fail(env, HELIUM_ERROR_INTERNAL, error.what());
        }
    } catch (const Pending&) {
    } catch (...) {  // no memory for the exception
        if (!env->ExceptionCheck()) env->ThrowNew(java.out_of_memory, "within libhelium_onnx_jni");
    }
    return decltype(body())();
}

// ---- Models

struct ModelOptions {
    std::string onnxruntime;
    helium_model_options options;

    ModelOptions(JNIEnv* env, jbyteArray library, jint threads, jboolean spin, jlong context_length, jint kernels, jboolean check_digests, jlong memory_limit) {
        helium_model_options_init(&options);
        if (library) options.onnxruntime = (onnxruntime = text_of(env, library, "onnxruntime")).c_str();
        options.threads = threads;
        options.spin = spin;
        options.context_length = context_length;
        options.kernels = (helium_kernels)kernels;
        options.check_digests = check_digests;
        options.memory_limit = memory_limit;
    }
    ModelOptions(const ModelOptions&) = delete;  // it points into itself
};

jbyteArray version(JNIEnv* env, jclass) {
    return native(env, [&] { return bytes_of(env, helium_version()); });
}

jlong model_open(JNIEnv* env, jclass, jbyteArray path, jbyteArray library, jint threads, jboolean spin, jlong context_length, jint kernels,
                 jboolean check_digests, jlong memory_limit) {
    return native(env, [&] {
        const ModelOptions options(env, library, threads, spin, context_length, kernels, check_digests, memory_limit);
        helium_model* model = nullptr;
        check(env, helium_model_open(text_of(env, path, "path").c_str(), &options.options, &model));
        return (jlong)(intptr_t)model;
    });
}

jobject plan_memory(JNIEnv* env, jclass, jbyteArray path, jbyteArray library, jint threads, jboolean spin, jlong context_length, jint kernels,
                    jboolean check_digests, jlong memory_limit) {
    return native(env, [&] {
        const ModelOptions options(env, library, threads, spin, context_length, kernels, check_digests, memory_limit);
        helium_memory_plan plan{};
        plan.struct_size = sizeof plan;
        check(env, helium_plan_memory(text_of(env, path, "path").c_str(), &options.options, &plan));
        return made(env->NewObject(java.memory_plan, java.new_memory_plan, (jlong)plan.weights, (jlong)plan.private_weights, (jlong)plan.cache,
                                   (jlong)plan.working, (jlong)plan.total, (jlong)plan.available));
    });
}

jobject model_info(JNIEnv* env, jclass, jlong model) {
    return native(env, [&] {
        helium_model_info info{};
        info.struct_size = sizeof info;
        check(env, helium_model_get_info(model_of(model), &info));
        const jbyteArray bundle = bytes_of(env, info.bundle), recipe = bytes_of(env, info.recipe), onnxruntime = bytes_of(env, info.onnxruntime);
        return made(env->NewObject(java.model_info, java.new_model_info, (jlong)info.vocab_size, (jlong)info.context_length, (jint)info.threads,
                                   (jint)info.kernels, bundle, recipe, onnxruntime, (jdouble)info.load_seconds, (jlong)info.weights_bytes,
                                   (jlong)info.weights_resident, (jlong)info.peak_memory));
    });
}

void model_close(JNIEnv*, jclass, jlong model) { helium_model_close(model_of(model)); }

// ---- Tokens

jintArray encode(JNIEnv* env, jclass, jlong model, jbyteArray utf8, jint flags) {
    return native(env, [&] {
        const std::string text = text_of(env, utf8, "text");
        std::vector<int32_t> ids(text.size() / 2 + 16);  // enough, but for unusual texts
        size_t count = 0;
        for (;;) {
            check(env, helium_encode(model_of(model), text.data(), text.size(), (uint32_t)flags, ids.data(), ids.size(), &count));
            if (count <= ids.size()) return array_of(env, ids, count);
            ids.resize(count);
        }
    });
}

jbyteArray decode(JNIEnv* env, jclass, jlong model, jintArray array, jint flags) {
    return native(env, [&] {
        const std::vector<int32_t> ids = ids_of(env, array, "ids");
        std::string text(ids.size() * 8 + 16, '\0');
        size_t size = 0;
        for (;;) {
            check(env, helium_decode(model_of(model), ids.data(), ids.size(), (uint32_t)flags, &text[0], text.size(), &size));
            if (size <= text.size()) return bytes_of(env, text.data(), size);
            text.resize(size);
        }
    });
}

// ---- Conversations

helium_conversation_options conversation_options(jlong context_length, jint overflow) {
    helium_conversation_options options;
    helium_conversation_options_init(&options);
    options.context_length = context_length;
    options.overflow = (helium_overflow)overflow;
    return options;
}

jlong conversation_open(JNIEnv* env, jclass, jlong model, jlong context_length, jint overflow) {
    return native(env, [&] {
        const helium_conversation_options options = conversation_options(context_length, overflow);
        helium_conversation* conversation = nullptr;
        check(env, helium_conversation_open(model_of(model), &options, &conversation));
        return (jlong)(intptr_t)conversation;
    });
}

jlong conversation_restore(JNIEnv* env, jclass, jlong model, jbyteArray path, jlong context_length, jint overflow) {
    return native(env, [&] {
        const helium_conversation_options options = conversation_options(context_length, overflow);
        helium_conversation* conversation = nullptr;
        check(env, helium_conversation_restore(model_of(model), text_of(env, path, "path").c_str(), &options, &conversation));
        return (jlong)(intptr_t)conversation;
    });
}

void conversation_save(JNIEnv* env, jclass, jlong conversation, jbyteArray path) {
    native(env, [&] { check(env, helium_conversation_save(conversation_of(conversation), text_of(env, path, "path").c_str())); });
}

jintArray conversation_ids(JNIEnv* env, jclass, jlong conversation) {
    return native(env, [&] {
        std::vector<int32_t> ids(1024);
        size_t count = 0;
        for (;;) {  // between two calls another thread may have gone on
            check(env, helium_conversation_ids(conversation_of(conversation), ids.data(), ids.size(), &count));
            if (count <= ids.size()) return array_of(env, ids, count);
            ids.resize(count);
        }
    });
}

void conversation_truncate(JNIEnv* env, jclass, jlong conversation, jlong count) {
    native(env, [&] { check(env, helium_conversation_truncate(conversation_of(conversation), (size_t)count)); });
}

void conversation_close(JNIEnv*, jclass, jlong conversation) { helium_conversation_close(conversation_of(conversation)); }

void cancel(JNIEnv* env, jclass, jlong conversation) {
    native(env, [&] { check(env, helium_cancel(conversation_of(conversation))); });
}

// ---- Generation: callbacks come on the thread of the call, whose JNIEnv holds

struct Listener {
    JNIEnv* env;
    jobject object;

    // What a callback answers: 0 to go on. An exception stays pending, and nothing is called after it.
    int answer(jboolean goes_on) const { return env->ExceptionCheck() || !goes_on; }
};

int on_text(void* user, const char* utf8, size_t bytes) {
    const Listener& listener = *(const Listener*)user;
    JNIEnv* env = listener.env;
    const jbyteArray text = env->NewByteArray((jsize)bytes);
    if (!text) return 1;
    env->SetByteArrayRegion(text, 0, (jsize)bytes, (const jbyte*)utf8);
    const jboolean goes_on = env->CallStaticBooleanMethod(java.native, java.on_text, listener.object, text);
    env->DeleteLocalRef(text);  // else each piece would hold one until the whole text has ended
    return listener.answer(goes_on);
}

int on_token(void* user, int32_t id) {
    const Listener& listener = *(const Listener*)user;
    return listener.answer(listener.env->CallBooleanMethod(listener.object, java.on_token, (jint)id));
}

int on_prefill(void* user, int64_t done, int64_t of) {
    const Listener& listener = *(const Listener*)user;
    return listener.answer(listener.env->CallBooleanMethod(listener.object, java.on_prefill, (jlong)done, (jlong)of));
}

jobject generate(JNIEnv* env, jclass, jlong conversation, jbyteArray prompt, jintArray prompt_ids, jint prompt_mode, jboolean parse_special,
                 jlong max_new_tokens, jdouble temperature, jlong top_k, jdouble top_p, jdouble min_p, jdouble repetition_penalty, jlong seed,
                 jboolean has_seed, jboolean ignore_eos, jobjectArray stop, jobject listening) {
    return native(env, [&] {
        helium_request request;
        helium_request_init(&request);
        std::string text;
        std::vector<int32_t> ids;
        if (prompt) {
            text = text_of(env, prompt, "prompt");
            request.prompt = text.data();
            request.prompt_bytes = text.size();
        }
        if (prompt_ids) {
            ids = ids_of(env, prompt_ids, "promptIds");
            request.prompt_ids = ids.data();
            request.prompt_count = ids.size();
        }
        request.prompt_mode = (helium_prompt_mode)prompt_mode;
        request.parse_special = parse_special;
        request.max_new_tokens = max_new_tokens;
        request.temperature = temperature;
        request.top_k = top_k;
        request.top_p = top_p;
        request.min_p = min_p;
        request.repetition_penalty = repetition_penalty;
        request.seed = (uint64_t)seed;
        request.has_seed = has_seed;
        request.ignore_eos = ignore_eos;

        require(env, stop, "stop");
        std::vector<std::string> stop_texts((size_t)env->GetArrayLength(stop));
        std::vector<const char*> stop_pointers;
        for (std::string& stop_text : stop_texts) {
            const auto element = (jbyteArray)env->GetObjectArrayElement(stop, (jsize)stop_pointers.size());
            stop_text = text_of(env, element, "a stop string");
            env->DeleteLocalRef(element);
            stop_pointers.push_back(stop_text.c_str());
        }
        request.stop = stop_pointers.data();
        request.stop_count = stop_pointers.size();

        Listener listener{env, listening};
        if (listening) {
            request.on_text = on_text;
            request.on_token = on_token;
            request.on_prefill = on_prefill;
            request.user = &listener;
        }
        helium_result result{};
        result.struct_size = sizeof result;
        check(env, helium_generate(conversation_of(conversation), &request, &result));
        return made(env->NewObject(java.result, java.new_result, (jint)result.finish, (jlong)result.prompt_tokens, (jlong)result.reused_tokens,
                                   (jlong)result.new_tokens, (jlong)result.seed, (jint)result.stop_index, (jdouble)result.seconds,
                                   (jdouble)result.first_token_seconds, (jdouble)result.prefill_tokens_per_second,
                                   (jdouble)result.decode_tokens_per_second));
    });
}

// ---- Registration

#define HELIUM_OPTIONS "[BIZJIZJ"
const JNINativeMethod kNatives[] = {
    {(char*)"version", (char*)"()[B", (void*)version},
    {(char*)"modelOpen", (char*)"([B" HELIUM_OPTIONS ")J", (void*)model_open},
    {(char*)"planMemory", (char*)"([B" HELIUM_OPTIONS ")Lorg/heliumonnx/MemoryPlan;", (void*)plan_memory},
    {(char*)"modelInfo", (char*)"(J)Lorg/heliumonnx/ModelInfo;", (void*)model_info},
    {(char*)"modelClose", (char*)"(J)V", (void*)model_close},
    {(char*)"encode", (char*)"(J[BI)[I", (void*)encode},
    {(char*)"decode", (char*)"(J[II)[B", (void*)decode},
    {(char*)"conversationOpen", (char*)"(JJI)J", (void*)conversation_open},
    {(char*)"conversationRestore", (char*)"(J[BJI)J", (void*)conversation_restore},
    {(char*)"conversationSave", (char*)"(J[B)V", (void*)conversation_save},
    {(char*)"conversationIds", (char*)"(J)[I", (void*)conversation_ids},
    {(char*)"conversationTruncate", (char*)"(JJ)V", (void*)conversation_truncate},
    {(char*)"conversationClose", (char*)"(J)V", (void*)conversation_close},
    {(char*)"cancel", (char*)"(J)V", (void*)cancel},
    {(char*)"generate", (char*)"(J[B[IIZJDJDDDJZZ[[BLorg/heliumonnx/TextListener;)Lorg/heliumonnx/GenerationResult;", (void*)generate},
};

// A class of ours, for as long as the library is loaded.
jclass class_of(JNIEnv* env, const char* name) {
    const jclass local = made(env->FindClass(name));
    const auto global = (jclass)made(env->NewGlobalRef(local));
    env->DeleteLocalRef(local);
    return global;
}

void look_up(JNIEnv* env) {
    const auto constructor = [env](jclass type, const char* signature) { return made(env->GetMethodID(type, "<init>", signature)); };
    java.null_pointer = class_of(env, "java/lang/NullPointerException");
    java.out_of_memory = class_of(env, "java/lang/OutOfMemoryError");
    java.exception = class_of(env, "org/heliumonnx/HeliumException");
    java.new_exception = constructor(java.exception, "(I[B)V");
    java.model_info = class_of(env, "org/heliumonnx/ModelInfo");
    java.new_model_info = constructor(java.model_info, "(JJII[B[B[BDJJJ)V");
    java.memory_plan = class_of(env, "org/heliumonnx/MemoryPlan");
    java.new_memory_plan = constructor(java.memory_plan, "(JJJJJJ)V");
    java.result = class_of(env, "org/heliumonnx/GenerationResult");
    java.new_result = constructor(java.result, "(IJJJJIDDDD)V");
    java.native = class_of(env, "org/heliumonnx/Native");
    java.on_text = made(env->GetStaticMethodID(java.native, "onText", "(Lorg/heliumonnx/TextListener;[B)Z"));
    const jclass listener = class_of(env, "org/heliumonnx/TextListener");  // held, so that its method ids hold
    java.on_token = made(env->GetMethodID(listener, "onToken", "(I)Z"));
    java.on_prefill = made(env->GetMethodID(listener, "onPrefill", "(JJ)Z"));
    if (env->RegisterNatives(java.native, kNatives, sizeof kNatives / sizeof *kNatives) != JNI_OK) throw Pending();
}

}  // namespace

extern "C" JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM* vm, void*) {
    JNIEnv* env = nullptr;
    if (vm->GetEnv((void**)&env, JNI_VERSION_1_6) != JNI_OK) return JNI_ERR;
    try {
        look_up(env);
        if (helium_api_version() != HELIUM_API_VERSION)
            fail(env, HELIUM_ERROR_INTERNAL, "libhelium_onnx is of another version: found " + std::to_string(helium_api_version()) + "; expected " +
                                                 std::to_string(HELIUM_API_VERSION) + "; build both from one source");
    } catch (...) {
        return JNI_ERR;
    }
    return JNI_VERSION_1_6;
}
