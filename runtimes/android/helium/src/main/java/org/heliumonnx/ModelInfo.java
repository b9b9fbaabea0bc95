package org.heliumonnx;

/** A model as it is loaded, at the time of {@link HeliumModel#info}. */
public final class ModelInfo {
    public final long vocabSize;
    public final long contextLength;
    public final int threads;
    /** NATIVE or ONNXRUNTIME. */
    public final Kernels kernels;
    /** The bundle's SHA-256, in hex. */
    public final String bundle;
    /** As "cpu-int4". */
    public final String recipe;
    /** ONNX Runtime's version, as "1.31.1". */
    public final String onnxruntime;
    public final double loadSeconds;
    /** Bytes of the weights' file. */
    public final long weightsBytes;
    /** Of them in memory now; -1 where the system does not tell. */
    public final long weightsResident;
    /** Of the process so far, in bytes; -1 where the system does not tell. */
    public final long peakMemory;

    /** Called by helium_jni.cpp. */
    ModelInfo(
            long vocabSize, long contextLength, int threads, int kernels, byte[] bundle, byte[] recipe,
            byte[] onnxruntime, double loadSeconds, long weightsBytes, long weightsResident, long peakMemory) {
        this.vocabSize = vocabSize;
        this.contextLength = contextLength;
        this.threads = threads;
        this.kernels = Kernels.values()[kernels];
        this.bundle = Utf8.text(bundle);
        this.recipe = Utf8.text(recipe);
        this.onnxruntime = Utf8.text(onnxruntime);
        this.loadSeconds = loadSeconds;
        this.weightsBytes = weightsBytes;
        this.weightsResident = weightsResident;
        this.peakMemory = peakMemory;
    }
}
