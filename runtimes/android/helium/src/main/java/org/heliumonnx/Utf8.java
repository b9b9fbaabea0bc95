package org.heliumonnx;

import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.util.Objects;

/**
 * Text on its way through JNI: UTF-8 in byte arrays, since JNI's own strings are a modified UTF-8, which has other
 * bytes for NUL and for characters beyond U+FFFF.
 */
final class Utf8 {
    private Utf8() {}

    static String text(byte[] utf8) {
        return new String(utf8, StandardCharsets.UTF_8);
    }

    /** Text of a prompt, which may hold NULs. String.getBytes would write '?' for half a surrogate pair, unseen. */
    static byte[] bytes(String text, String name) {
        return bytes(text, name, HeliumException.Status.PROMPT);
    }

    /** Text that ends at a NUL in C: a path or a stop string. */
    static byte[] withoutNul(String text, String name) {
        byte[] utf8 = bytes(text, name, HeliumException.Status.INVALID_ARGUMENT);
        for (int i = 0; i < utf8.length; ++i) {
            if (utf8[i] == 0) {
                throw new HeliumException(
                        HeliumException.Status.INVALID_ARGUMENT,
                        name + " has a NUL: found it at byte " + i + "; expected text without; remove it");
            }
        }
        return utf8;
    }

    private static byte[] bytes(String text, String name, HeliumException.Status status) {
        Objects.requireNonNull(text, name);
        try {
            ByteBuffer utf8 = StandardCharsets.UTF_8
                    .newEncoder()
                    .onMalformedInput(CodingErrorAction.REPORT)
                    .encode(CharBuffer.wrap(text));
            byte[] bytes = new byte[utf8.remaining()];
            utf8.get(bytes);
            return bytes;
        } catch (CharacterCodingException error) {
            throw new HeliumException(
                    status,
                    name + " is no Unicode text: found half a surrogate pair at index " + loneSurrogate(text)
                            + "; expected whole pairs; do not cut a String within a character");
        }
    }

    private static int loneSurrogate(String text) {
        for (int i = 0; i < text.length(); ++i) {
            if (!Character.isSurrogate(text.charAt(i))) continue;
            if (i + 1 == text.length() || !Character.isSurrogatePair(text.charAt(i), text.charAt(i + 1))) return i;
            ++i;
        }
        return -1;
    }
}
