package org.heliumonnx;

/** Why a text ended: {@code helium_finish} of helium_onnx.h, in its order. */
public enum FinishReason {
    /** maxNewTokens. */
    LENGTH,
    EOS,
    /** A stop string; it is not in the text. */
    STOP,
    /** {@link HeliumConversation#cancel}, or a listener that returned false. */
    CANCELLED,
    /** The context is full. */
    CONTEXT
}
