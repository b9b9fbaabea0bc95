package org.heliumonnx;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;
import static org.junit.Assume.assumeTrue;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.Base64;
import org.junit.Test;

/**
 * tests/vectors/tokenizer.json, of the sample checkpoint's tokenizer. vectors.py writes it as lines of a kind, a text
 * in base64, and ids or their SHA-256.
 */
public class TokenizerVectorsTest {
    private static void compare(String kind, EncodeFlag... flags) throws Exception {
        Path file = Paths.get(System.getProperty("helium.vectors"));
        assumeTrue("the bundle has another tokenizer than samples/helium-docs-7m", Files.exists(file));
        int count = 0;
        for (String line : Files.readAllLines(file)) {
            String[] fields = line.split("\t", -1);
            if (!fields[0].equals(kind)) continue;
            String text = new String(Base64.getDecoder().decode(fields[1]), StandardCharsets.UTF_8);
            int[] ids = Fixture.model().encode(text, flags);
            if (kind.equals("lines")) {
                assertEquals(text, fields[2], digest(ids));
            } else {
                assertArrayEquals(text, Arrays.stream(fields[2].split(" ")).mapToInt(Integer::parseInt).toArray(), ids);
            }
            ++count;
        }
        assertTrue(kind + " has vectors", count > 0);
    }

    private static String digest(int[] ids) throws Exception {
        ByteBuffer bytes = ByteBuffer.allocate(4 * ids.length).order(ByteOrder.LITTLE_ENDIAN);
        for (int id : ids) bytes.putInt(id);
        StringBuilder hex = new StringBuilder();
        for (byte b : MessageDigest.getInstance("SHA-256").digest(bytes.array())) hex.append(String.format("%02x", b));
        return hex.toString();
    }

    @Test
    public void texts() throws Exception {
        compare("texts");
    }

    @Test
    public void controlTokens() throws Exception {
        compare("special", EncodeFlag.PARSE_SPECIAL);
    }

    @Test
    public void evaluationTexts() throws Exception {
        compare("lines");
    }
}
