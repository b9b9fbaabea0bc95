package org.heliumonnx;

import java.util.Objects;

/** How a model is opened. What is not set is as libhelium_onnx has it. */
public final class ModelOptions {
    /** For {@link Builder#memoryLimit}: what the system can give now. */
    public static final long MEMORY_AVAILABLE = -1;

    public static final ModelOptions DEFAULT = builder().build();

    final byte[] onnxruntime;
    final int threads;
    final boolean spin;
    final long contextLength;
    final Kernels kernels;
    final boolean checkDigests;
    final long memoryLimit;

    private ModelOptions(Builder builder) {
        onnxruntime = builder.onnxruntime;
        threads = builder.threads;
        spin = builder.spin;
        contextLength = builder.contextLength;
        kernels = builder.kernels;
        checkDigests = builder.checkDigests;
        memoryLimit = builder.memoryLimit;
    }

    public static Builder builder() {
        return new Builder();
    }

    public static final class Builder {
        private byte[] onnxruntime;
        private int threads;
        private boolean spin = true;
        private long contextLength;
        private Kernels kernels = Kernels.AUTO;
        private boolean checkDigests;
        private long memoryLimit;

        private Builder() {}

        /** Path or name of ONNX Runtime's library. Not set: $HELIUM_ONNXRUNTIME, else libonnxruntime.so. */
        public Builder onnxruntime(String library) {
            onnxruntime = Utf8.withoutNul(library, "onnxruntime");
            return this;
        }

        /** 0: the physical cores that this process may use; of unequal ones, the fast. */
        public Builder threads(int threads) {
            this.threads = threads;
            return this;
        }

        /** true: threads wait for each other by spinning (faster, warmer); false: they sleep. */
        public Builder spin(boolean spin) {
            this.spin = spin;
            return this;
        }

        /** The most tokens of a conversation; 0: the model's. */
        public Builder contextLength(long tokens) {
            contextLength = tokens;
            return this;
        }

        public Builder kernels(Kernels kernels) {
            this.kernels = Objects.requireNonNull(kernels, "kernels");
            return this;
        }

        /** true: hash every file against the manifest's SHA-256 first (0.5 to 2 GB/s). */
        public Builder checkDigests(boolean check) {
            checkDigests = check;
            return this;
        }

        /** Bytes; 0: none; {@link #MEMORY_AVAILABLE}. A bundle whose plan needs more is refused before it is loaded. */
        public Builder memoryLimit(long bytes) {
            memoryLimit = bytes;
            return this;
        }

        public ModelOptions build() {
            return new ModelOptions(this);
        }
    }
}
