package org.heliumonnx;

import java.io.Closeable;
import java.util.Objects;

/**
 * One text with its keys, values and sampler. Conversations are independent of each other, also of one model.
 *
 * <p>A conversation serves one call at a time: a second one throws {@link HeliumException.Status#BUSY}, at once.
 * {@link #cancel} and {@link #close} may be called by any thread at any time, also within a callback. Close it: it
 * holds memory that the garbage collector does not know of.
 */
public final class HeliumConversation implements Closeable {
    private final long handle;

    private HeliumConversation(long handle) {
        this.handle = handle;
    }

    public static HeliumConversation open(HeliumModel model) {
        return open(model, ConversationOptions.DEFAULT);
    }

    public static HeliumConversation open(HeliumModel model, ConversationOptions options) {
        Objects.requireNonNull(model, "model");
        Objects.requireNonNull(options, "options");
        return new HeliumConversation(
                Native.conversationOpen(model.handle, options.contextLength, options.overflow.ordinal()));
    }

    /** A conversation as {@link #save} left it: it goes on with the same tokens. Of the same bundle and kernels. */
    public static HeliumConversation restore(HeliumModel model, String path) {
        return restore(model, path, ConversationOptions.DEFAULT);
    }

    public static HeliumConversation restore(HeliumModel model, String path, ConversationOptions options) {
        Objects.requireNonNull(model, "model");
        Objects.requireNonNull(options, "options");
        return new HeliumConversation(Native.conversationRestore(
                model.handle, Utf8.withoutNul(path, "path"), options.contextLength, options.overflow.ordinal()));
    }

    public GenerationResult generate(GenerationRequest request) {
        return generate(request, null);
    }

    /**
     * Continue a text. Returns when it has ended, also where it was cancelled; interrupting the thread does not end it.
     *
     * @param listener is called on this thread; null: nobody listens. What it throws ends the text and is thrown to the
     *     caller. It may call {@link #cancel} and {@link #close} of this conversation; other methods are BUSY.
     */
    public GenerationResult generate(GenerationRequest request, TextListener listener) {
        Objects.requireNonNull(request, "request");
        return Native.generate(
                handle, request.prompt, request.promptIds, request.promptMode.ordinal(), request.parseSpecial,
                request.maxNewTokens, request.temperature, request.topK, request.topP, request.minP,
                request.repetitionPenalty, request.seed, request.hasSeed, request.ignoreEos, request.stop, listener);
    }

    /** End a generate that is running within one token, or within a part of its prompt; without one, nothing. */
    public void cancel() {
        Native.cancel(handle);
    }

    /** The tokens that the conversation holds. */
    public int[] ids() {
        return Native.conversationIds(handle);
    }

    /** Forget all tokens after the first {@code count}. */
    public void truncate(long count) {
        if (count < 0) {
            throw new HeliumException(
                    HeliumException.Status.INVALID_ARGUMENT,
                    "count is negative: found " + count + "; expected 0 or more");
        }
        Native.conversationTruncate(handle, count);
    }

    /** Write the conversation to a file, which replaces an older one in one step and only its owner may read. */
    public void save(String path) {
        Native.conversationSave(handle, Utf8.withoutNul(path, "path"));
    }

    /** A generate that is running ends within one token, with {@link HeliumException.Status#CLOSED}. */
    @Override
    public void close() {
        Native.conversationClose(handle);
    }
}
