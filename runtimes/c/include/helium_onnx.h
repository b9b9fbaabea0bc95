/*
 * helium_onnx: generate text with a bundle of helium-onnx, from any language that can call C.
 *
 *     helium_model* model;
 *     if (helium_model_open("helium-int4", NULL, &model) != HELIUM_OK) { puts(helium_error_text()); return 1; }
 *     helium_conversation* conversation;
 *     helium_conversation_open(model, NULL, &conversation);
 *     helium_request request;
 *     helium_request_init(&request);
 *     request.prompt = "Once upon a time";
 *     request.on_text = show;                        // int show(void* user, const char* utf8, size_t bytes)
 *     helium_generate(conversation, &request, NULL);
 *
 * ONNX Runtime is opened at run time: any build that loads the bundle's graphs serves (1.24.2 to 1.31.1 were tried).
 * Nothing leaves the machine.
 *
 * Status. Every function that can fail returns a helium_status; HELIUM_OK is 0. What went wrong, in words (found,
 * expected, remedy), is helium_error_text() on the thread that made the call. Outputs are written on success only.
 *
 * Handles. A handle is a ticket, not an address: one that was closed, or was never given, is refused with
 * HELIUM_ERROR_CLOSED, also where another thread closes it in the middle of a call. No ticket is given twice.
 *
 * Text. All text is UTF-8. What takes a length takes HELIUM_TO_NUL for text that ends with a NUL. Callbacks get whole
 * characters only, and no NUL behind them.
 *
 * Threads. Each function says what may run beside it. Two conversations are independent of each other.
 *
 * Memory. Weights are mapped from the bundle's file, once for all conversations. A failed allocation anywhere gives
 * HELIUM_ERROR_OUT_OF_MEMORY, and what was begun is undone.
 *
 * Versions. Structs begin with struct_size, which the _init functions set: a library that knows more fields than its
 * caller leaves those alone. HELIUM_API_VERSION counts changes that break callers.
 */
#ifndef HELIUM_ONNX_H
#define HELIUM_ONNX_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(HELIUM_ONNX_BUILDING)
#define HELIUM_API __declspec(dllexport)
#elif defined(HELIUM_ONNX_STATIC)
#define HELIUM_API
#else
#define HELIUM_API __declspec(dllimport)
#endif
#else
#define HELIUM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define HELIUM_API_VERSION 1
#define HELIUM_TO_NUL ((size_t)-1)
#define HELIUM_MEMORY_AVAILABLE (-1)

typedef enum helium_status {
    HELIUM_OK = 0,
    HELIUM_ERROR_INVALID_ARGUMENT = 1, /* a value that the function cannot take */
    HELIUM_ERROR_CLOSED = 2,           /* a handle that is closed, or is none */
    HELIUM_ERROR_OUT_OF_MEMORY = 3,    /* also: the memory plan is over the limit that was given */
    HELIUM_ERROR_BUSY = 4,             /* another call is using the conversation */
    HELIUM_ERROR_RUNTIME = 5,          /* ONNX Runtime cannot be opened, is too old, or failed */
    HELIUM_ERROR_BUNDLE = 6,           /* no bundle, or one that this library does not run */
    HELIUM_ERROR_INTEGRITY = 7,        /* a file is not what was exported: truncated, changed, missing */
    HELIUM_ERROR_FORMAT_VERSION = 8,   /* written by a newer helium-onnx */
    HELIUM_ERROR_TOKENIZER = 9,        /* tokenizer.json is malformed, or none of Helium's */
    HELIUM_ERROR_PROMPT = 10,          /* no token, or text that is no UTF-8 */
    HELIUM_ERROR_CONTEXT_OVERFLOW = 11, /* prompt and new tokens do not fit the context */
    HELIUM_ERROR_LOGITS = 12,          /* the model gave NaN or infinite logits */
    HELIUM_ERROR_SESSION_FILE = 13,    /* a saved conversation that is damaged, or of another bundle */
    HELIUM_ERROR_IO = 14,              /* a file cannot be read or written */
    HELIUM_ERROR_INTERNAL = 15         /* a mistake of this library: please report it */
} helium_status;

/* "HELIUM_ERROR_BUNDLE"; "unknown" for other numbers. Any thread, any time. */
HELIUM_API const char* helium_status_name(helium_status status);

/* Of the last call that failed on this thread: "problem: found ...; expected ...; remedy". "" before any failed. The text
 * is the caller's until the next failing call on this thread. Any thread, any time. */
HELIUM_API const char* helium_error_text(void);

/* "0.1.0". Any thread, any time. */
HELIUM_API const char* helium_version(void);

/* HELIUM_API_VERSION of the library. Any thread, any time. */
HELIUM_API uint32_t helium_api_version(void);

/* ---- Models ---------------------------------------------------------------------------------------------------- */

typedef struct helium_model helium_model;

typedef enum helium_kernels {
    HELIUM_KERNELS_AUTO = 0,        /* our own where the bundle has graphs for them and the processor has vectors */
    HELIUM_KERNELS_NATIVE = 1,      /* our own, or HELIUM_ERROR_BUNDLE */
    HELIUM_KERNELS_ONNXRUNTIME = 2  /* ONNX Runtime's */
} helium_kernels;

typedef struct helium_model_options {
    size_t struct_size;
    const char* onnxruntime;   /* path or name of ONNX Runtime's library; NULL: the environment's HELIUM_ONNXRUNTIME, else
                                  the platform's name (libonnxruntime.so, onnxruntime.dll, ...), in the loader's folders */
    int32_t threads;           /* 0: the physical cores this process may use */
    int32_t spin;              /* 1: threads wait for each other by spinning (faster, warmer); 0: they sleep */
    int64_t context_length;    /* the most tokens of a conversation; 0: the model's */
    helium_kernels kernels;
    int32_t check_digests;     /* 1: hash every file against the manifest's SHA-256 first (0.5 to 2 GB/s) */
    int64_t memory_limit;      /* bytes; 0: none; HELIUM_MEMORY_AVAILABLE: what the system can give now. A bundle whose
                                  plan (helium_plan_memory) needs more is refused before it is loaded */
} helium_model_options;

/* Any thread, any time. */
HELIUM_API void helium_model_options_init(helium_model_options* options);

/* Load the bundle (a folder with helium.json). `options` may be NULL. The model needs no file but those of its folder,
 * which must stay as they are while it is open. Any thread, any time.
 * BUNDLE, INTEGRITY, FORMAT_VERSION, TOKENIZER, RUNTIME, OUT_OF_MEMORY, INVALID_ARGUMENT, IO. */
HELIUM_API helium_status helium_model_open(const char* path, const helium_model_options* options, helium_model** model);

/* Close the ticket. Conversations go on; the last one to be closed frees the weights. Any thread, any time; a NULL or
 * closed ticket is left alone. */
HELIUM_API void helium_model_close(helium_model* model);

typedef struct helium_model_info {
    size_t struct_size;
    int64_t vocab_size;
    int64_t context_length;
    int32_t threads;
    helium_kernels kernels;     /* NATIVE or ONNXRUNTIME */
    char bundle[65];            /* the bundle's SHA-256, in hex */
    char recipe[64];            /* "cpu-int4" */
    char onnxruntime[32];       /* "1.31.1" */
    double load_seconds;
    int64_t weights_bytes;      /* of the weights' file */
    int64_t weights_resident;   /* of them in memory now; -1 where the system does not tell */
    int64_t peak_memory;        /* of the process so far, in bytes; -1 where the system does not tell */
} helium_model_info;

/* Set info->struct_size = sizeof *info first. Any thread, any time. CLOSED, INVALID_ARGUMENT. */
HELIUM_API helium_status helium_model_get_info(helium_model* model, helium_model_info* info);

typedef struct helium_memory_plan {
    size_t struct_size;
    int64_t weights;      /* bytes that are mapped from the bundle's files: clean pages, which the system may take back */
    int64_t private_weights; /* bytes of copies that ONNX Runtime packs for itself (an estimate) */
    int64_t cache;        /* keys and values of one full conversation */
    int64_t working;      /* activations, logits, tokenizer, ONNX Runtime itself (an estimate) */
    int64_t total;        /* of the above */
    int64_t available;    /* what the system can give this process now; -1 where it does not tell */
} helium_memory_plan;

/* What the bundle will need, from its manifest alone: milliseconds, nothing is loaded. `options` as for
 * helium_model_open. Set plan->struct_size first. Any thread, any time. As helium_model_open, without RUNTIME. */
HELIUM_API helium_status helium_plan_memory(const char* path, const helium_model_options* options,
                                            helium_memory_plan* plan);

/* ---- Tokens ---------------------------------------------------------------------------------------------------- */

typedef enum helium_encode_flags {
    HELIUM_ENCODE_DEFAULT = 0,       /* <s> first; names of control tokens in the text are text */
    HELIUM_ENCODE_NO_BOS = 1,        /* without <s> */
    HELIUM_ENCODE_PARSE_SPECIAL = 2, /* "</s>" in the text is the control token: only for text that no user wrote */
    HELIUM_ENCODE_CONTINUE = 4       /* the middle of a text: no <s>, and no space before the first word */
} helium_encode_flags;

/* Token ids of `text`. At most `capacity` are written to `ids` (NULL with capacity 0 to ask for the number); `*count` is
 * how many there are. Any thread, any time. PROMPT (no UTF-8), INVALID_ARGUMENT, CLOSED, OUT_OF_MEMORY. */
HELIUM_API helium_status helium_encode(helium_model* model, const char* text, size_t bytes, uint32_t flags, int32_t* ids,
                                       size_t capacity, size_t* count);

/* Text of `ids`, control tokens left out, without a NUL behind it; `*bytes` is how long it is, of which `capacity` are
 * written. A text that begins with the first token loses its first space, unless `flags` has HELIUM_ENCODE_CONTINUE.
 * Bytes that are no character become U+FFFD. Any thread, any time. TOKENIZER (an id outside the vocabulary), ... */
HELIUM_API helium_status helium_decode(helium_model* model, const int32_t* ids, size_t count, uint32_t flags, char* text,
                                       size_t capacity, size_t* bytes);

/* ---- Conversations --------------------------------------------------------------------------------------------- */

typedef struct helium_conversation helium_conversation;

typedef enum helium_overflow {
    HELIUM_OVERFLOW_ERROR = 0, /* a prompt that leaves no room is refused; a text ends where the context is full */
    HELIUM_OVERFLOW_SLIDE = 1  /* the first token and the later half of the others are kept, and read again */
} helium_overflow;

typedef struct helium_conversation_options {
    size_t struct_size;
    int64_t context_length;   /* 0: the model's; at most that */
    helium_overflow overflow;
} helium_conversation_options;

HELIUM_API void helium_conversation_options_init(helium_conversation_options* options);

/* Keys, values and a sampler of their own; memory is taken as tokens come. `options` may be NULL. Any thread, any time.
 * CLOSED, INVALID_ARGUMENT, OUT_OF_MEMORY. */
HELIUM_API helium_status helium_conversation_open(helium_model* model, const helium_conversation_options* options,
                                                  helium_conversation** conversation);

/* Close the ticket. A helium_generate that is running ends within one token with HELIUM_ERROR_CLOSED, and then frees the
 * conversation. Any thread, any time, also within a callback; a NULL or closed ticket is left alone. */
HELIUM_API void helium_conversation_close(helium_conversation* conversation);

typedef enum helium_finish {
    HELIUM_FINISH_LENGTH = 0,    /* max_new_tokens */
    HELIUM_FINISH_EOS = 1,
    HELIUM_FINISH_STOP = 2,      /* a stop string; it is not in the text */
    HELIUM_FINISH_CANCELLED = 3, /* helium_cancel, or a callback that returned non-zero */
    HELIUM_FINISH_CONTEXT = 4    /* the context is full */
} helium_finish;

typedef enum helium_prompt_mode {
    HELIUM_PROMPT_WHOLE = 0,  /* the prompt is the whole text; what the conversation holds of its beginning is reused. Over
                                 our kernels that changes no bit; ONNX Runtime's may round a token that was generated
                                 otherwise than one that was read: truncate to 0 first where the difference matters */
    HELIUM_PROMPT_APPEND = 1  /* the prompt goes on where the conversation is (none: just go on) */
} helium_prompt_mode;

typedef struct helium_request {
    size_t struct_size;
    const char* prompt;           /* UTF-8; or NULL */
    size_t prompt_bytes;          /* HELIUM_TO_NUL */
    const int32_t* prompt_ids;    /* instead of `prompt`: its tokens, with <s>; or NULL */
    size_t prompt_count;
    helium_prompt_mode prompt_mode;
    int32_t parse_special;        /* 1: names of control tokens in `prompt` count as such */
    int64_t max_new_tokens;       /* 256; 0 only reads the prompt */
    double temperature;           /* 0: greedy */
    int64_t top_k;                /* 0: all */
    double top_p;                 /* 1: all */
    double min_p;                 /* 0: all */
    double repetition_penalty;    /* 1: none */
    uint64_t seed;
    int32_t has_seed;             /* 1: begin the stream of `seed`, which gives the tokens that Python gives for it.
                                     0: go on with the conversation's stream, or a new one of the system's choice */
    int32_t ignore_eos;
    const char* const* stop;      /* `stop_count` texts that end with a NUL */
    size_t stop_count;
    int (*on_token)(void* user, int32_t id);                        /* each token; non-zero ends the text */
    int (*on_text)(void* user, const char* utf8, size_t bytes);     /* text as it becomes certain, likewise */
    int (*on_prefill)(void* user, int64_t done, int64_t of);        /* tokens of the prompt that were read, likewise */
    void* user;
} helium_request;

HELIUM_API void helium_request_init(helium_request* request);

typedef struct helium_result {
    size_t struct_size;
    helium_finish finish;
    int64_t prompt_tokens;      /* of the whole text before the first new token */
    int64_t reused_tokens;      /* of them, those that were not computed again */
    int64_t new_tokens;
    uint64_t seed;              /* that was used */
    int32_t stop_index;         /* which stop string; -1 */
    double seconds;             /* of the whole call */
    double first_token_seconds; /* until the first token was chosen; 0 without one */
    double prefill_tokens_per_second;
    double decode_tokens_per_second;  /* of the tokens after the first */
} helium_result;

/* Continue a text. Returns when it has ended, HELIUM_OK also where it was cancelled; `result` may be NULL (else set its
 * struct_size first). Callbacks run on this thread. They may call helium_cancel and helium_conversation_close with this
 * conversation; other calls with it are HELIUM_ERROR_BUSY, as they are from other threads. After an error the
 * conversation holds what was read until then and can go on.
 * PROMPT, CONTEXT_OVERFLOW, INVALID_ARGUMENT, BUSY, CLOSED, LOGITS, RUNTIME, OUT_OF_MEMORY. */
HELIUM_API helium_status helium_generate(helium_conversation* conversation, const helium_request* request,
                                         helium_result* result);

/* End a helium_generate that is running within one token, or within a part of its prompt; without one, nothing. Any
 * thread, any time, also within a callback and in a signal handler's thread (not in the handler). CLOSED. */
HELIUM_API helium_status helium_cancel(helium_conversation* conversation);

/* The tokens that the conversation holds, as helium_encode writes ids. CLOSED, BUSY, INVALID_ARGUMENT. */
HELIUM_API helium_status helium_conversation_ids(helium_conversation* conversation, int32_t* ids, size_t capacity,
                                                 size_t* count);

/* Forget all tokens after the first `count`. INVALID_ARGUMENT where there are fewer, CLOSED, BUSY. */
HELIUM_API helium_status helium_conversation_truncate(helium_conversation* conversation, size_t count);

/* ---- Saved conversations --------------------------------------------------------------------------------------- */

/* Write tokens, keys, values and the sampler's state to `path`, a file that replaces an older one in one step and that
 * only its owner may read. It is safetensors with a version and a SHA-256. IO, CLOSED, BUSY, OUT_OF_MEMORY. */
HELIUM_API helium_status helium_conversation_save(helium_conversation* conversation, const char* path);

/* A conversation as it was saved: it goes on with the very same tokens. Of the same bundle and kernels only. `options` as
 * for helium_conversation_open. SESSION_FILE, FORMAT_VERSION, IO, CONTEXT_OVERFLOW, and as helium_conversation_open. */
HELIUM_API helium_status helium_conversation_restore(helium_model* model, const char* path,
                                                     const helium_conversation_options* options,
                                                     helium_conversation** conversation);

#ifdef __cplusplus
}
#endif

#endif /* HELIUM_ONNX_H */
