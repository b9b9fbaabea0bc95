package org.heliumonnx;

import java.io.Closeable;
import java.util.Objects;

/**
 * A bundle of helium-onnx, open for any number of {@link HeliumConversation}s. Weights are mapped from the bundle's
 * file, once for all of them.
 *
 * <p>All methods may be called by any thread at any time. Close it: it holds memory that the garbage collector does not
 * know of. After {@link #close}, methods throw {@link HeliumException.Status#CLOSED}.
 */
public final class HeliumModel implements Closeable {
    final long handle;

    private HeliumModel(long handle) {
        this.handle = handle;
    }

    /** Load the bundle at {@code path}, a folder with helium.json, which must stay as it is while the model is open. */
    public static HeliumModel open(String path) {
        return open(path, ModelOptions.DEFAULT);
    }

    public static HeliumModel open(String path, ModelOptions options) {
        Objects.requireNonNull(options, "options");
        return new HeliumModel(Native.modelOpen(
                Utf8.withoutNul(path, "path"), options.onnxruntime, options.threads, options.spin,
                options.contextLength, options.kernels.ordinal(), options.checkDigests, options.memoryLimit));
    }

    /** What the bundle will need, in milliseconds: nothing is loaded. */
    public static MemoryPlan planMemory(String path) {
        return planMemory(path, ModelOptions.DEFAULT);
    }

    public static MemoryPlan planMemory(String path, ModelOptions options) {
        Objects.requireNonNull(options, "options");
        return Native.planMemory(
                Utf8.withoutNul(path, "path"), options.onnxruntime, options.threads, options.spin,
                options.contextLength, options.kernels.ordinal(), options.checkDigests, options.memoryLimit);
    }

    /** Of libhelium_onnx, as "0.1.0". */
    public static String libraryVersion() {
        return Utf8.text(Native.version());
    }

    public ModelInfo info() {
        return Native.modelInfo(handle);
    }

    public int[] encode(String text, EncodeFlag... flags) {
        return Native.encode(handle, Utf8.bytes(text, "text"), EncodeFlag.bits(flags));
    }

    /**
     * Text of {@code ids}, control tokens left out. It loses its first space, unless with {@link EncodeFlag#CONTINUE}.
     * Bytes that are no character become U+FFFD.
     */
    public String decode(int[] ids, EncodeFlag... flags) {
        return Utf8.text(Native.decode(handle, Objects.requireNonNull(ids, "ids"), EncodeFlag.bits(flags)));
    }

    /** Conversations go on; the last one to be closed frees the weights. */
    @Override
    public void close() {
        Native.modelClose(handle);
    }
}
