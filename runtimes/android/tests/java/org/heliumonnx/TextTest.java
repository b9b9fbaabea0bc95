package org.heliumonnx;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.stream.Stream;
import org.heliumonnx.HeliumException.Status;
import org.junit.Test;

/** Text crosses JNI as it is: NULs, characters beyond U+FFFF, and refusal of what has no UTF-8. */
public class TextTest {
    @Test
    public void encodeAndDecodeGiveTheTextBack() {
        String[] texts = {
            "👍🏽", "👨‍👩‍👧 𝄞", "\uDBFF\uDFFF", "a\0b", "\0", "é日本",
            "\uFFFF", "\uFEFFa", "</s> <s>"
        };
        for (String text : texts) {
            assertEquals(text, Fixture.model().decode(Fixture.model().encode(text)));
        }
        assertEquals("", Fixture.model().decode(new int[0]));
    }

    /** A NUL takes its token, and what stands behind it is read too. */
    @Test
    public void nulIsACharacter() {
        assertTrue(Fixture.model().encode("a\0b").length > Fixture.model().encode("a").length + 1);
        try (HeliumConversation conversation = Fixture.conversation()) {
            GenerationRequest request = GenerationRequest.builder().prompt("a\0b\0👍").maxNewTokens(0).build();
            conversation.generate(request);
            assertArrayEquals(Fixture.model().encode("a\0b\0👍"), conversation.ids());
        }
    }

    @Test
    public void listenersHearWholeText() {
        for (String text : new String[] {"👍🏽𝄞", "a\0b", ""}) {
            Recorder heard = new Recorder();
            Native.onText(heard, text.getBytes(StandardCharsets.UTF_8));
            assertEquals(text, heard.text());
        }
    }

    @Test
    public void flags() {
        HeliumModel model = Fixture.model();
        int[] plain = model.encode("a</s>");
        int[] bare = model.encode("a</s>", EncodeFlag.NO_BOS);
        assertEquals(plain.length - 1, bare.length);
        int[] special = model.encode("a</s>", EncodeFlag.PARSE_SPECIAL);
        assertEquals(2, special[special.length - 1]);
        assertEquals(special.length - 1, model.encode("a</s>", EncodeFlag.PARSE_SPECIAL, EncodeFlag.NO_BOS).length);
        assertEquals("a", model.decode(special));
        assertEquals(" a", model.decode(model.encode(" a", EncodeFlag.CONTINUE), EncodeFlag.CONTINUE));
    }

    @Test
    public void halfACharacterIsRefused() {
        for (String text : new String[] {"\uD83D", "a\uDC4D", "\uDC4D\uD83D", "👍\uD83Dx"}) {
            HeliumException error = Fixture.assertFails(Status.PROMPT, () -> Fixture.model().encode(text));
            assertTrue(error.getMessage(), error.getMessage().contains("half a surrogate pair at index"));
            Fixture.assertFails(Status.PROMPT, () -> GenerationRequest.builder().prompt(text));
            Fixture.assertFails(Status.INVALID_ARGUMENT, () -> HeliumModel.open(text));
        }
        HeliumException error = Fixture.assertFails(Status.PROMPT, () -> Fixture.model().encode("👍a\uD83Dx"));
        assertTrue(error.getMessage(), error.getMessage().contains("index 3;"));
    }

    @Test
    public void bundleAtAnyPath() throws IOException {
        Path copy = Fixture.temporary("模型 👍");
        Path bundle = Paths.get(Fixture.BUNDLE);
        try (Stream<Path> files = Files.walk(bundle)) {
            files.forEach(file -> {
                try {
                    Files.copy(file, copy.resolve(bundle.relativize(file).toString()));
                } catch (IOException error) {
                    throw new UncheckedIOException(error);
                }
            });
        }
        try (HeliumModel model = HeliumModel.open(copy.toString())) {
            assertEquals(Fixture.model().info().bundle, model.info().bundle);
        }
        Files.write(copy.resolve("tokenizer.json"), new byte[] {'{'});
        HeliumException error = Fixture.assertFails(Status.INTEGRITY, () -> HeliumModel.open(copy.toString()));
        assertTrue(error.getMessage(), error.getMessage().contains("tokenizer.json"));
    }
}
