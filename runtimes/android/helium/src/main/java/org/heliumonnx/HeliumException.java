package org.heliumonnx;

/** A call that failed. The message says what was found, what was expected, and the remedy. */
public final class HeliumException extends RuntimeException {
    private static final long serialVersionUID = 1;

    /** What kind of failure: {@code helium_status} of helium_onnx.h, in its order from 1 on. */
    public enum Status {
        /** A value that the function cannot take. */
        INVALID_ARGUMENT,
        /** A model or conversation that is closed. */
        CLOSED,
        /** Also: the memory plan is over the limit that was given. */
        OUT_OF_MEMORY,
        /** Another call is using the conversation. */
        BUSY,
        /** ONNX Runtime cannot be opened, is too old, or failed. */
        RUNTIME,
        /** No bundle, or one that this library does not run. */
        BUNDLE,
        /** A file is not what was exported: truncated, changed, missing. */
        INTEGRITY,
        /** Written by a newer helium-onnx. */
        FORMAT_VERSION,
        /** tokenizer.json is malformed, or none of Helium's. */
        TOKENIZER,
        /** No token, or text that has no UTF-8. */
        PROMPT,
        /** Prompt and new tokens do not fit the context. */
        CONTEXT_OVERFLOW,
        /** The model gave NaN or infinite logits. */
        LOGITS,
        /** A saved conversation that is damaged, or of another bundle. */
        SESSION_FILE,
        /** A file cannot be read or written. */
        IO,
        /** A mistake of this library: please report it. */
        INTERNAL
    }

    private final Status status;

    HeliumException(Status status, String message) {
        super(message);
        this.status = status;
    }

    /** Called by helium_jni.cpp. */
    HeliumException(int status, byte[] message) {
        this(statusOf(status), Utf8.text(message));
    }

    public Status getStatus() {
        return status;
    }

    private static Status statusOf(int number) {
        Status[] all = Status.values();
        return number >= 1 && number <= all.length ? all[number - 1] : Status.INTERNAL;
    }
}
