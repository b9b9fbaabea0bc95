package org.heliumonnx;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.util.ArrayList;
import java.util.List;
import org.heliumonnx.HeliumException.Status;
import org.junit.Test;

/** Arguments that cannot be: each gives an exception that says so. */
public class ArgumentsTest {
    private static final GenerationRequest FEW = GenerationRequest.builder().prompt("The").maxNewTokens(4).build();

    @Test
    public void nulls() {
        HeliumModel model = Fixture.model();
        HeliumConversation conversation = Fixture.conversation();
        List<Fixture.Call> calls = new ArrayList<>();
        calls.add(() -> HeliumModel.open(null));
        calls.add(() -> HeliumModel.open(Fixture.BUNDLE, null));
        calls.add(() -> HeliumModel.planMemory(null));
        calls.add(() -> HeliumModel.planMemory(Fixture.BUNDLE, null));
        calls.add(() -> model.encode(null));
        calls.add(() -> model.encode("a", (EncodeFlag[]) null));
        calls.add(() -> model.encode("a", (EncodeFlag) null));
        calls.add(() -> model.decode(null));
        calls.add(() -> HeliumConversation.open(null));
        calls.add(() -> HeliumConversation.open(model, null));
        calls.add(() -> HeliumConversation.restore(null, "a"));
        calls.add(() -> HeliumConversation.restore(model, null));
        calls.add(() -> HeliumConversation.restore(model, "a", null));
        calls.add(() -> conversation.generate(null));
        calls.add(() -> conversation.save(null));
        calls.add(() -> new ConversationOptions(0, null));
        calls.add(() -> ModelOptions.builder().kernels(null));
        calls.add(() -> ModelOptions.builder().onnxruntime(null));
        calls.add(() -> GenerationRequest.builder().prompt(null));
        calls.add(() -> GenerationRequest.builder().promptIds((int[]) null));
        calls.add(() -> GenerationRequest.builder().promptMode(null));
        calls.add(() -> GenerationRequest.builder().stop((String[]) null));
        calls.add(() -> GenerationRequest.builder().stop("a", null));
        // The natives themselves, which those above shield.
        calls.add(() -> Native.modelOpen(null, null, 0, true, 0, 0, false, 0));
        calls.add(() -> Native.planMemory(null, null, 0, true, 0, 0, false, 0));
        calls.add(() -> Native.encode(model.handle, null, 0));
        calls.add(() -> Native.decode(model.handle, null, 0));
        calls.add(() -> Native.conversationRestore(model.handle, null, 0, 0));
        calls.add(() -> Native.conversationSave(0, null));
        calls.add(() -> Native.generate(0, null, null, 0, false, 0, 0, 0, 0, 0, 0, 0, false, false, null, null));
        calls.add(() ->
                Native.generate(0, null, null, 0, false, 0, 0, 0, 0, 0, 0, 0, false, false, new byte[1][], null));
        for (Fixture.Call call : calls) {
            NullPointerException error = Fixture.assertThrown(NullPointerException.class, call);
            assertTrue(error.getStackTrace().length > 0);
        }
        conversation.close();
    }

    @Test
    public void noPrompt() {
        try (HeliumConversation conversation = Fixture.conversation()) {
            GenerationRequest none = GenerationRequest.builder().build();
            Fixture.assertFails(Status.PROMPT, () -> conversation.generate(none));
            GenerationRequest noIds = GenerationRequest.builder().promptIds().build();
            Fixture.assertFails(Status.PROMPT, () -> conversation.generate(noIds));
            GenerationRequest strangeIds = GenerationRequest.builder().promptIds(1, 1_000_000_000).build();
            Fixture.assertFails(Status.PROMPT, () -> conversation.generate(strangeIds));
        }
    }

    @Test
    public void valuesOutOfRange() {
        List<GenerationRequest.Builder> requests = new ArrayList<>();
        requests.add(GenerationRequest.builder().maxNewTokens(-1));
        requests.add(GenerationRequest.builder().temperature(Double.NaN));
        requests.add(GenerationRequest.builder().temperature(-1));
        requests.add(GenerationRequest.builder().topP(2));
        requests.add(GenerationRequest.builder().topK(-1));
        requests.add(GenerationRequest.builder().minP(-0.5));
        requests.add(GenerationRequest.builder().repetitionPenalty(0));
        try (HeliumConversation conversation = Fixture.conversation()) {
            for (GenerationRequest.Builder request : requests) {
                HeliumException error = Fixture.assertFails(
                        Status.INVALID_ARGUMENT, () -> conversation.generate(request.prompt("The").build()));
                assertTrue(error.getMessage(), error.getMessage().contains("found "));
            }
            Fixture.assertFails(Status.INVALID_ARGUMENT, () -> conversation.truncate(-1));
            Fixture.assertFails(Status.INVALID_ARGUMENT, () -> conversation.truncate(1L << 40));
            assertTrue(conversation.generate(FEW).newTokens > 0);
        }
        ModelOptions threads = ModelOptions.builder().threads(-1).build();
        Fixture.assertFails(Status.INVALID_ARGUMENT, () -> HeliumModel.open(Fixture.BUNDLE, threads));
        ConversationOptions context = new ConversationOptions(1L << 40, ConversationOptions.Overflow.ERROR);
        Fixture.assertFails(Status.INVALID_ARGUMENT, () -> HeliumConversation.open(Fixture.model(), context));
        Fixture.assertFails(
                Status.TOKENIZER, () -> Fixture.model().decode(new int[] {(int) Fixture.model().info().vocabSize}));
    }

    @Test
    public void promptThatDoesNotFit() {
        int[] ids = new int[(int) Fixture.model().info().contextLength + 1];
        java.util.Arrays.fill(ids, 300);
        try (HeliumConversation conversation = Fixture.conversation()) {
            Fixture.assertFails(
                    Status.CONTEXT_OVERFLOW,
                    () -> conversation.generate(GenerationRequest.builder().promptIds(ids).build()));
        }
    }

    @Test
    public void wrongPath() {
        HeliumException error = Fixture.assertFails(Status.BUNDLE, () -> HeliumModel.open("/nowhere/模型👍"));
        assertTrue(error.getMessage(), error.getMessage().contains("/nowhere/模型👍"));
        Fixture.assertFails(Status.BUNDLE, () -> HeliumModel.planMemory("/nowhere/模型👍"));
        Fixture.assertFails(Status.INVALID_ARGUMENT, () -> HeliumModel.open(Fixture.BUNDLE + "\0"));
        Fixture.assertFails(Status.INVALID_ARGUMENT, () -> GenerationRequest.builder().stop("a\0b"));
    }

    @Test
    public void wrongOnnxruntime() {
        ModelOptions options = ModelOptions.builder().onnxruntime("/nowhere/libonnxruntime.so").build();
        HeliumException error = Fixture.assertFails(Status.RUNTIME, () -> HeliumModel.open(Fixture.BUNDLE, options));
        assertTrue(error.getMessage(), error.getMessage().contains("/nowhere/libonnxruntime.so"));
    }

    @Test
    public void options() {
        ModelOptions options = ModelOptions.builder()
                .onnxruntime(System.getenv("HELIUM_ONNXRUNTIME")).threads(1).spin(false).contextLength(100)
                .kernels(Kernels.ONNXRUNTIME).checkDigests(true).memoryLimit(1L << 40).build();
        try (HeliumModel model = HeliumModel.open(Fixture.BUNDLE, options)) {
            ModelInfo info = model.info();
            assertEquals(1, info.threads);
            assertEquals(100, info.contextLength);
            assertEquals(Kernels.ONNXRUNTIME, info.kernels);
            assertEquals(64, info.bundle.length());
            assertTrue(info.recipe, !info.recipe.isEmpty());
            assertTrue(info.onnxruntime, info.onnxruntime.startsWith("1."));
            assertTrue(info.loadSeconds > 0 && info.weightsBytes > 0 && info.vocabSize > 0);
        }
        assertTrue(HeliumModel.libraryVersion().matches("\\d+\\.\\d+\\.\\d+.*"));
    }
}
