package org.heliumonnx;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.fail;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** What tests share: the bundle's model, which stays open, the C sample, and the checks of what is thrown. */
public final class Fixture {
    public static final String BUNDLE = System.getProperty("helium.bundle");
    private static HeliumModel model;

    private Fixture() {}

    public static synchronized HeliumModel model() {
        if (model == null) model = HeliumModel.open(BUNDLE);
        return model;
    }

    public static HeliumConversation conversation() {
        return HeliumConversation.open(model());
    }

    /** One whose text never ends by itself: {@link #endless}. */
    public static HeliumConversation slidingConversation() {
        return HeliumConversation.open(model(), new ConversationOptions(128, ConversationOptions.Overflow.SLIDE));
    }

    public static GenerationRequest.Builder endless() {
        return GenerationRequest.builder().prompt("Once upon a time").ignoreEos(true).maxNewTokens(1_000_000_000);
    }

    public static Path temporary(String name) {
        try {
            return Files.createTempDirectory(Paths.get(System.getProperty("helium.work")), "test").resolve(name);
        } catch (IOException error) {
            throw new AssertionError(error);
        }
    }

    /** Standard output of samples/helium.c for the prompt, which it reads from standard input. */
    public static String sample(String prompt, String... options) throws IOException, InterruptedException {
        List<String> command = new ArrayList<>(Arrays.asList(System.getProperty("helium.sample"), BUNDLE, "-"));
        command.addAll(Arrays.asList(options));
        Process process = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
        process.getOutputStream().write(prompt.getBytes(StandardCharsets.UTF_8));
        process.getOutputStream().close();
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        InputStream output = process.getInputStream();
        for (int next = output.read(); next >= 0; next = output.read()) bytes.write(next);
        assertEquals("exit code of the sample", 0, process.waitFor());
        return new String(bytes.toByteArray(), StandardCharsets.UTF_8);
    }

    public interface Call {
        void run() throws Throwable;
    }

    public static HeliumException assertFails(HeliumException.Status status, Call call) {
        HeliumException error = assertThrown(HeliumException.class, call);
        assertEquals(error.getMessage(), status, error.getStatus());
        return error;
    }

    public static <T extends Throwable> T assertThrown(Class<T> type, Call call) {
        try {
            call.run();
        } catch (Throwable error) {
            if (type.isInstance(error)) return type.cast(error);
            throw new AssertionError("expected " + type + ", found " + error, error);
        }
        fail("expected " + type + ", found none");
        return null;
    }
}
