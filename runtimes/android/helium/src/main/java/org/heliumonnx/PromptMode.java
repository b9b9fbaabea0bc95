package org.heliumonnx;

/** What a prompt is to its conversation: {@code helium_prompt_mode} of helium_onnx.h, in its order. */
public enum PromptMode {
    /** The prompt is the whole text; what the conversation holds of its beginning is reused. */
    WHOLE,
    /** The prompt goes on where the conversation is (without a prompt: just go on). */
    APPEND
}
