package org.heliumonnx;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;

import java.nio.file.Files;
import java.nio.file.Path;
import org.heliumonnx.HeliumException.Status;
import org.junit.Test;

/** A conversation that was saved goes on with the very same tokens. */
public class SavedConversationTest {
    private static final GenerationRequest BEGINNING = GenerationRequest.builder()
            .prompt("Il était une fois").maxNewTokens(20).temperature(0.9).seed(11).ignoreEos(true).build();
    private static final GenerationRequest REST = GenerationRequest.builder()
            .promptMode(PromptMode.APPEND).maxNewTokens(30).temperature(0.9).ignoreEos(true).build();

    @Test
    public void goesOnWithTheSameTokens() {
        String file = Fixture.temporary("été 👍.safetensors").toString();
        try (HeliumConversation conversation = Fixture.conversation()) {
            conversation.generate(BEGINNING);
            conversation.save(file);
            try (HeliumConversation restored = HeliumConversation.restore(Fixture.model(), file)) {
                assertArrayEquals(conversation.ids(), restored.ids());
                conversation.generate(REST);
                GenerationResult result = restored.generate(REST);
                assertEquals(30, result.newTokens);
                assertArrayEquals(conversation.ids(), restored.ids());
            }
        }
    }

    @Test
    public void filesThatCannotBe() throws Exception {
        Path file = Fixture.temporary("conversation");
        try (HeliumConversation conversation = Fixture.conversation()) {
            conversation.generate(BEGINNING);
            conversation.save(file.toString());
            Fixture.assertFails(Status.IO, () -> conversation.save(file + "/none/file"));
        }
        byte[] bytes = Files.readAllBytes(file);
        bytes[bytes.length / 2] ^= 1;
        Files.write(file, bytes);
        Fixture.assertFails(Status.SESSION_FILE, () -> HeliumConversation.restore(Fixture.model(), file.toString()));
        Fixture.assertFails(Status.IO, () -> HeliumConversation.restore(Fixture.model(), file + "-none"));
    }
}
