package org.heliumonnx;

import java.util.Objects;

/** What to continue, and how: {@code helium_request} of helium_onnx.h. Immutable, for any number of calls. */
public final class GenerationRequest {
    final byte[] prompt;
    final int[] promptIds;
    final PromptMode promptMode;
    final boolean parseSpecial;
    final long maxNewTokens;
    final double temperature;
    final long topK;
    final double topP;
    final double minP;
    final double repetitionPenalty;
    final long seed;
    final boolean hasSeed;
    final boolean ignoreEos;
    final byte[][] stop;

    private GenerationRequest(Builder builder) {
        prompt = builder.prompt;
        promptIds = builder.promptIds;
        promptMode = builder.promptMode;
        parseSpecial = builder.parseSpecial;
        maxNewTokens = builder.maxNewTokens;
        temperature = builder.temperature;
        topK = builder.topK;
        topP = builder.topP;
        minP = builder.minP;
        repetitionPenalty = builder.repetitionPenalty;
        seed = builder.seed;
        hasSeed = builder.hasSeed;
        ignoreEos = builder.ignoreEos;
        stop = builder.stop;
    }

    public static Builder builder() {
        return new Builder();
    }

    /** Its defaults are those of helium_request_init: greedy, at most 256 new tokens. */
    public static final class Builder {
        private byte[] prompt;
        private int[] promptIds;
        private PromptMode promptMode = PromptMode.WHOLE;
        private boolean parseSpecial;
        private long maxNewTokens = 256;
        private double temperature;
        private long topK;
        private double topP = 1;
        private double minP;
        private double repetitionPenalty = 1;
        private long seed;
        private boolean hasSeed;
        private boolean ignoreEos;
        private byte[][] stop = {};

        private Builder() {}

        /** In place of {@link #promptIds}. */
        public Builder prompt(String text) {
            prompt = Utf8.bytes(text, "prompt");
            promptIds = null;
            return this;
        }

        /** The prompt's tokens, with {@code <s>}, in place of {@link #prompt}. */
        public Builder promptIds(int... ids) {
            promptIds = ids.clone();
            prompt = null;
            return this;
        }

        public Builder promptMode(PromptMode mode) {
            promptMode = Objects.requireNonNull(mode, "promptMode");
            return this;
        }

        /** true: names of control tokens in the prompt count as such. Only for text that no user wrote. */
        public Builder parseSpecial(boolean parse) {
            parseSpecial = parse;
            return this;
        }

        /** 0 only reads the prompt. */
        public Builder maxNewTokens(long count) {
            maxNewTokens = count;
            return this;
        }

        /** 0: greedy. */
        public Builder temperature(double temperature) {
            this.temperature = temperature;
            return this;
        }

        /** 0: all. */
        public Builder topK(long topK) {
            this.topK = topK;
            return this;
        }

        /** 1: all. */
        public Builder topP(double topP) {
            this.topP = topP;
            return this;
        }

        /** 0: all. */
        public Builder minP(double minP) {
            this.minP = minP;
            return this;
        }

        /** 1: none. */
        public Builder repetitionPenalty(double penalty) {
            repetitionPenalty = penalty;
            return this;
        }

        /**
         * Begin the stream of {@code seed} (unsigned), which gives the tokens that Python gives for it. Not set: go on
         * with the conversation's stream, or a new one of the system's choice.
         */
        public Builder seed(long seed) {
            this.seed = seed;
            hasSeed = true;
            return this;
        }

        public Builder ignoreEos(boolean ignore) {
            ignoreEos = ignore;
            return this;
        }

        /** Texts that end the text where they come, in place of those before. */
        public Builder stop(String... texts) {
            byte[][] utf8 = new byte[texts.length][];
            for (int i = 0; i < texts.length; ++i) utf8[i] = Utf8.withoutNul(texts[i], "a stop string");
            stop = utf8;
            return this;
        }

        public GenerationRequest build() {
            return new GenerationRequest(this);
        }
    }
}
