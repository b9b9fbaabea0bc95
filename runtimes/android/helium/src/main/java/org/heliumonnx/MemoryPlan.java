package org.heliumonnx;

/** What a bundle will need, in bytes, known from its manifest alone: {@link HeliumModel#planMemory}. */
public final class MemoryPlan {
    /** Mapped from the bundle's files: clean pages, which the system may take back. */
    public final long weights;
    /** Copies that ONNX Runtime packs for itself (an estimate). */
    public final long privateWeights;
    /** Keys and values of one full conversation. */
    public final long cache;
    /** Activations, logits, tokenizer, ONNX Runtime itself (an estimate). */
    public final long working;
    /** Of the above. */
    public final long total;
    /** What the system can give this process now; -1 where it does not tell. */
    public final long available;

    /** Called by helium_jni.cpp. */
    MemoryPlan(long weights, long privateWeights, long cache, long working, long total, long available) {
        this.weights = weights;
        this.privateWeights = privateWeights;
        this.cache = cache;
        this.working = working;
        this.total = total;
        this.available = available;
    }
}
