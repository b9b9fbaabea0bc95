package org.heliumonnx;

/** How a text ended, and what it took. */
public final class GenerationResult {
    public final FinishReason finish;
    /** Of the whole text before the first new token. */
    public final long promptTokens;
    /** Of them, those that were not computed again. */
    public final long reusedTokens;
    public final long newTokens;
    /** That was used, unsigned: {@link Long#toUnsignedString(long)}. */
    public final long seed;
    /** Which stop string; -1: none. */
    public final int stopIndex;
    /** Of the whole call. */
    public final double seconds;
    /** Until the first token was chosen; 0 without one. */
    public final double firstTokenSeconds;
    public final double prefillTokensPerSecond;
    /** Of the tokens after the first. */
    public final double decodeTokensPerSecond;

    /** Called by helium_jni.cpp. */
    GenerationResult(
            int finish, long promptTokens, long reusedTokens, long newTokens, long seed, int stopIndex, double seconds,
            double firstTokenSeconds, double prefillTokensPerSecond, double decodeTokensPerSecond) {
        this.finish = FinishReason.values()[finish];
        this.promptTokens = promptTokens;
        this.reusedTokens = reusedTokens;
        this.newTokens = newTokens;
        this.seed = seed;
        this.stopIndex = stopIndex;
        this.seconds = seconds;
        this.firstTokenSeconds = firstTokenSeconds;
        this.prefillTokensPerSecond = prefillTokensPerSecond;
        this.decodeTokensPerSecond = decodeTokensPerSecond;
    }
}
