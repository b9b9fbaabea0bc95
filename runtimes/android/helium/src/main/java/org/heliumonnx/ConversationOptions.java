package org.heliumonnx;

import java.util.Objects;

/** How a conversation is opened. */
public final class ConversationOptions {
    /** What happens where the context is full: {@code helium_overflow} of helium_onnx.h, in its order. */
    public enum Overflow {
        /** A prompt that leaves no room is refused; a text ends where the context is full. */
        ERROR,
        /** The first token and the later half of the others are kept, and read again. */
        SLIDE
    }

    public static final ConversationOptions DEFAULT = new ConversationOptions(0, Overflow.ERROR);

    final long contextLength;
    final Overflow overflow;

    /** @param contextLength the most tokens; 0: the model's; at most that */
    public ConversationOptions(long contextLength, Overflow overflow) {
        this.contextLength = contextLength;
        this.overflow = Objects.requireNonNull(overflow, "overflow");
    }
}
