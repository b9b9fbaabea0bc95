package org.heliumonnx;

/** Who computes: {@code helium_kernels} of helium_onnx.h, in its order. */
public enum Kernels {
    /** Our own where the bundle has graphs for them and the processor has vectors. */
    AUTO,
    /** Our own, or {@link HeliumException.Status#BUNDLE}. */
    NATIVE,
    /** ONNX Runtime's. */
    ONNXRUNTIME
}
