package org.heliumonnx;

/**
 * The functions of helium_jni.cpp, which checks no more than it must: ranges are libhelium_onnx's to check. Handles are
 * tickets, so a closed one is refused there and needs no lock here.
 */
final class Native {
    private static final String LIBRARY_PROPERTY = "org.heliumonnx.library";

    static {
        load();
    }

    private Native() {}

    private static void load() {
        String path = System.getProperty(LIBRARY_PROPERTY);
        try {
            if (path == null) {
                System.loadLibrary("helium_onnx_jni");
            } else {
                System.load(path);
            }
        } catch (UnsatisfiedLinkError error) {
            UnsatisfiedLinkError explained = new UnsatisfiedLinkError(
                    "the JNI library cannot be loaded: found " + error.getMessage() + "; expected "
                            + (path == null ? "libhelium_onnx_jni and libhelium_onnx in the library path" : path)
                            + "; name its absolute path by the system property " + LIBRARY_PROPERTY
                            + ", or pack the app for this processor");
            explained.initCause(error);
            throw explained;
        }
    }

    static native byte[] version();

    static native long modelOpen(
            byte[] path, byte[] onnxruntime, int threads, boolean spin, long contextLength, int kernels,
            boolean checkDigests, long memoryLimit);

    static native MemoryPlan planMemory(
            byte[] path, byte[] onnxruntime, int threads, boolean spin, long contextLength, int kernels,
            boolean checkDigests, long memoryLimit);

    static native ModelInfo modelInfo(long model);

    static native void modelClose(long model);

    static native int[] encode(long model, byte[] text, int flags);

    static native byte[] decode(long model, int[] ids, int flags);

    static native long conversationOpen(long model, long contextLength, int overflow);

    static native long conversationRestore(long model, byte[] path, long contextLength, int overflow);

    static native void conversationSave(long conversation, byte[] path);

    static native int[] conversationIds(long conversation);

    static native void conversationTruncate(long conversation, long count);

    static native void conversationClose(long conversation);

    static native void cancel(long conversation);

    static native GenerationResult generate(
            long conversation, byte[] prompt, int[] promptIds, int promptMode, boolean parseSpecial, long maxNewTokens,
            double temperature, long topK, double topP, double minP, double repetitionPenalty, long seed,
            boolean hasSeed, boolean ignoreEos, byte[][] stop, TextListener listener);

    /** Called by helium_jni.cpp, so that a listener gets a String. */
    static boolean onText(TextListener listener, byte[] utf8) {
        return listener.onText(Utf8.text(utf8));
    }
}
