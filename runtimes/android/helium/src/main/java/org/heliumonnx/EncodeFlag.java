package org.heliumonnx;

/** How text becomes tokens and tokens become text. Without flags: {@code <s>} first, and its name in a text is text. */
public enum EncodeFlag {
    /** Without {@code <s>}. */
    NO_BOS,
    /** {@code </s>} in the text is the control token: only for text that no user wrote. */
    PARSE_SPECIAL,
    /** The middle of a text: no {@code <s>}, and no space before the first word. */
    CONTINUE;

    /** helium_encode_flags. */
    static int bits(EncodeFlag... flags) {
        int bits = 0;
        for (EncodeFlag flag : flags) bits |= 1 << flag.ordinal();
        return bits;
    }
}
