/*
 * Text in, text out, without Python: helium BUNDLE "Once upon a time"
 *
 *     helium BUNDLE PROMPT [options]       continue a text; "-" reads it from standard input
 *     helium BUNDLE PROMPT --bench N       N times, with times and memory
 *     helium BUNDLE --plan                 what memory the bundle will need
 *
 * Ctrl-C ends the text within one token. See `helium --help`.
 */
#if !defined(_WIN32)
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <signal.h>
#endif
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "helium_onnx.h"

static const char* const kHelp =
    "usage: helium BUNDLE PROMPT [options]\n"
    "\n"
    "Continue PROMPT (\"-\": standard input) with the bundle that `helium-onnx export` wrote.\n"
    "\n"
    "  --max-new-tokens N      (256)\n"
    "  --temperature T         0 is greedy (0)\n"
    "  --top-k K  --top-p P  --min-p P  --repetition-penalty R\n"
    "  --seed S                the same seed gives the same text\n"
    "  --stop TEXT             end before TEXT; may be given several times\n"
    "  --ignore-eos\n"
    "  --context N             the most tokens of the text (the model's)\n"
    "  --threads N             (the physical cores)\n"
    "  --kernels auto|native|onnxruntime\n"
    "  --onnxruntime PATH      ONNX Runtime's library ($HELIUM_ONNXRUNTIME, or the system's)\n"
    "  --check                 hash all files first\n"
    "  --session FILE          go on with a saved conversation, where FILE is there, and save it again\n"
    "  --ids                   print token ids instead of text\n"
    "  --bench N               N times, with times and memory, to standard error\n"
    "  --plan                  what memory the bundle will need, and end\n"
    "  --version\n";

static helium_conversation* conversation = NULL;

#if !defined(_WIN32)
/* A thread of its own waits for Ctrl-C: helium_cancel is not for signal handlers. */
static void* wait_for_interrupt(void* signals) {
    int signal_number;
    for (int count = 0; sigwait((sigset_t*)signals, &signal_number) == 0; ++count) {
        if (count > 0 || helium_cancel(conversation) != HELIUM_OK) _Exit(130); /* not begun yet, or the second time */
    }
    return NULL;
}
#endif

static int fail(void) {
    fflush(stdout);
    fprintf(stderr, "helium: %s\n", helium_error_text());
    return 1;
}

static int usage(const char* problem, const char* found) {
    fprintf(stderr, "helium: %s%s%s\nTry `helium --help`.\n", problem, found ? ": " : "", found ? found : "");
    return 2;
}

static int show_text(void* user, const char* text, size_t bytes) {
    (void)user;
    if (fwrite(text, 1, bytes, stdout) != bytes || fflush(stdout) != 0) return 1; /* nobody reads: end */
    return 0;
}

static int show_id(void* user, int32_t id) {
    (void)user;
    return printf("%d\n", (int)id) < 0;
}

static int be_quiet(void* user, const char* text, size_t bytes) {
    (void)user, (void)text, (void)bytes;
    return 0;
}

/* Standard input, whole; NULL: no memory, or it cannot be read. */
static char* read_input(size_t* bytes) {
    size_t capacity = 65536, used = 0;
    char* text = malloc(capacity);
    while (text) {
        const size_t got = fread(text + used, 1, capacity - used, stdin);
        used += got;
        if (got == 0) break;
        if (used == capacity) {
            char* larger = realloc(text, capacity *= 2);
            if (!larger) free(text);
            text = larger;
        }
    }
    if (text && ferror(stdin)) {
        free(text);
        text = NULL;
    }
    *bytes = used;
    return text;
}

static int whole(const char* text, int64_t* value) {
    char* end;
    errno = 0;
    *value = strtoll(text, &end, 10);
    return errno == 0 && end != text && *end == 0;
}

static int seed_of(const char* text, uint64_t* value) {
    char* end;
    errno = 0;
    *value = strtoull(text, &end, 10);
    return errno == 0 && end != text && *end == 0 && text[0] != '-';
}

static int real(const char* text, double* value) {
    char* end;
    *value = strtod(text, &end);
    return end != text && *end == 0;
}

static int print_plan(const char* bundle, const helium_model_options* options) {
    helium_memory_plan plan;
    plan.struct_size = sizeof plan;
    if (helium_plan_memory(bundle, options, &plan) != HELIUM_OK) return fail();
    printf("weights, mapped       %8.1f MB\n", (double)plan.weights / 1e6);
    printf("weights, copied       %8.1f MB\n", (double)plan.private_weights / 1e6);
    printf("keys and values       %8.1f MB for a full context\n", (double)plan.cache / 1e6);
    printf("working memory        %8.1f MB\n", (double)plan.working / 1e6);
    printf("in all                %8.1f MB\n", (double)plan.total / 1e6);
    if (plan.available >= 0) printf("this device can give  %8.1f MB\n", (double)plan.available / 1e6);
    return 0;
}

int main(int count, char** arguments) {
    helium_model_options options;
    helium_conversation_options conversation_options;
    helium_request request;
    helium_model* model = NULL;
    const char *bundle = NULL, *session = NULL;
    const char* stop[64];
    char* input = NULL;
    int64_t bench = 0, number = 0;
    int plan = 0, ids = 0, code = 0;

    helium_model_options_init(&options);
    helium_conversation_options_init(&conversation_options);
    helium_request_init(&request);
    request.stop = stop;
    for (int i = 1; i < count; ++i) {
        const char* name = arguments[i];
        const char* value = i + 1 < count ? arguments[i + 1] : NULL;
        if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) return fputs(kHelp, stdout) < 0;
        if (strcmp(name, "--version") == 0) return printf("helium %s\n", helium_version()) < 0;
        if (strcmp(name, "--ignore-eos") == 0) {
            request.ignore_eos = 1;
        } else if (strcmp(name, "--check") == 0) {
            options.check_digests = 1;
        } else if (strcmp(name, "--plan") == 0) {
            plan = 1;
        } else if (strcmp(name, "--ids") == 0) {
            ids = 1;
        } else if (strncmp(name, "--", 2) != 0) {
            if (!bundle) {
                bundle = name;
            } else if (!request.prompt) {
                request.prompt = name;
            } else {
                return usage("one prompt too many (quote a text with spaces)", name);
            }
        } else if (!value) {
            return usage("an option without its value, or one that there is not", name);
        } else {
            int good = 1;
            ++i;
            if (strcmp(name, "--max-new-tokens") == 0) {
                good = whole(value, &request.max_new_tokens);
            } else if (strcmp(name, "--temperature") == 0) {
                good = real(value, &request.temperature);
            } else if (strcmp(name, "--top-k") == 0) {
                good = whole(value, &request.top_k);
            } else if (strcmp(name, "--top-p") == 0) {
                good = real(value, &request.top_p);
            } else if (strcmp(name, "--min-p") == 0) {
                good = real(value, &request.min_p);
            } else if (strcmp(name, "--repetition-penalty") == 0) {
                good = real(value, &request.repetition_penalty);
            } else if (strcmp(name, "--seed") == 0) {
                good = seed_of(value, &request.seed);
                request.has_seed = 1;
            } else if (strcmp(name, "--stop") == 0) {
                if (request.stop_count == sizeof stop / sizeof *stop) return usage("more than 64 stop strings", NULL);
                stop[request.stop_count++] = value;
            } else if (strcmp(name, "--context") == 0) {
                good = whole(value, &options.context_length);
            } else if (strcmp(name, "--threads") == 0) {
                good = whole(value, &number) && number >= 0 && number <= 1024;
                options.threads = (int32_t)number;
            } else if (strcmp(name, "--kernels") == 0) {
                if (strcmp(value, "native") == 0) {
                    options.kernels = HELIUM_KERNELS_NATIVE;
                } else if (strcmp(value, "onnxruntime") == 0) {
                    options.kernels = HELIUM_KERNELS_ONNXRUNTIME;
                } else {
                    good = strcmp(value, "auto") == 0;
                }
            } else if (strcmp(name, "--onnxruntime") == 0) {
                options.onnxruntime = value;
            } else if (strcmp(name, "--session") == 0) {
                session = value;
            } else if (strcmp(name, "--bench") == 0) {
                good = whole(value, &bench) && bench > 0;
            } else {
                return usage("no such option", name);
            }
            if (!good) {
                fprintf(stderr, "helium: %s cannot be %s\nTry `helium --help`.\n", name, value);
                return 2;
            }
        }
    }
    if (!bundle) return usage("no bundle", NULL);
    if (plan) return print_plan(bundle, &options);
    if (!request.prompt) return usage("no prompt", NULL);

#if !defined(_WIN32)
    static sigset_t interrupts;
    pthread_t watcher;
    sigemptyset(&interrupts);
    sigaddset(&interrupts, SIGINT);
    pthread_sigmask(SIG_BLOCK, &interrupts, NULL); /* before ONNX Runtime's threads begin, which inherit it */
    if (pthread_create(&watcher, NULL, wait_for_interrupt, &interrupts) == 0) pthread_detach(watcher);
#endif
    if (strcmp(request.prompt, "-") == 0) {
        input = read_input(&request.prompt_bytes);
        if (!input) return usage("standard input cannot be read", NULL);
        request.prompt = input;
    }
    if (helium_model_open(bundle, &options, &model) != HELIUM_OK) return free(input), fail();
    helium_status status = HELIUM_OK;
    FILE* saved = session ? fopen(session, "rb") : NULL;
    if (saved) {
        fclose(saved);
        status = helium_conversation_restore(model, session, &conversation_options, &conversation);
        request.prompt_mode = HELIUM_PROMPT_APPEND;
    } else {
        status = helium_conversation_open(model, &conversation_options, &conversation);
    }
    request.on_text = ids ? NULL : bench ? be_quiet : show_text;
    request.on_token = ids ? show_id : NULL;
    for (int64_t round = 0; status == HELIUM_OK && round < (bench ? bench : 1); ++round) {
        helium_result result;
        result.struct_size = sizeof result;
        if (bench) status = helium_conversation_truncate(conversation, 0);
        if (status == HELIUM_OK) status = helium_generate(conversation, &request, &result);
        if (status != HELIUM_OK) break;
        if (!ids && !bench && putchar('\n') == EOF) code = 1;
        if (bench)
            fprintf(stderr, "%lld tokens read at %.1f a second, the first after %.3f s, then %lld at %.1f a second\n",
                    (long long)(result.prompt_tokens - result.reused_tokens), result.prefill_tokens_per_second, result.first_token_seconds,
                    (long long)(result.new_tokens - 1), result.decode_tokens_per_second);
        if (result.finish == HELIUM_FINISH_CANCELLED) {
            code = 130;
            break;
        }
    }
    if (status == HELIUM_OK && session) status = helium_conversation_save(conversation, session);
    if (status == HELIUM_OK && bench) {
        helium_model_info info;
        info.struct_size = sizeof info;
        status = helium_model_get_info(model, &info);
        if (status == HELIUM_OK)
            fprintf(stderr, "loaded in %.3f s; %d threads, %s kernels, onnxruntime %s; weights %.1f MB, %.1f MB of them in memory; peak %.1f MB\n", info.load_seconds,
                    (int)info.threads, info.kernels == HELIUM_KERNELS_NATIVE ? "our" : "ONNX Runtime's", info.onnxruntime, (double)info.weights_bytes / 1e6,
                    (double)info.weights_resident / 1e6, (double)info.peak_memory / 1e6);
    }
    if (status != HELIUM_OK) code = fail();
    helium_conversation_close(conversation);
    helium_model_close(model);
    free(input);
    return code;
}
