package org.heliumonnx;

/**
 * Hears a text as it comes, on the thread that called {@link HeliumConversation#generate}. Each method returns whether
 * to go on: false ends the text, and an exception ends it and is thrown to the caller of generate. Neither is followed
 * by another call. Time that a method takes is not counted as the model's.
 */
public interface TextListener {
    /** Text as it becomes certain: whole characters, and nothing that may be the beginning of a stop string. */
    boolean onText(String text);

    /** Each token, before its text. */
    default boolean onToken(int id) {
        return true;
    }

    /** {@code done} tokens of the prompt's {@code of} were read. */
    default boolean onPrefill(long done, long of) {
        return true;
    }
}
