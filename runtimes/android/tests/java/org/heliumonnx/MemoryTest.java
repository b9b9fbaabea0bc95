package org.heliumonnx;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;
import static org.junit.Assume.assumeTrue;

import java.nio.file.Files;
import java.nio.file.Paths;
import org.heliumonnx.HeliumException.Status;
import org.junit.Test;

/** What a bundle needs, and that what was closed is given back. */
public class MemoryTest {
    @Test
    public void plan() {
        MemoryPlan plan = HeliumModel.planMemory(Fixture.BUNDLE);
        assertTrue(plan.weights > 0 && plan.cache > 0 && plan.working > 0 && plan.privateWeights >= 0);
        assertEquals(plan.weights + plan.privateWeights + plan.cache + plan.working, plan.total);
        assertTrue(plan.available == -1 || plan.available > 0);
        ModelOptions half = ModelOptions.builder()
                .contextLength(Fixture.model().info().contextLength / 2).build();
        assertTrue(HeliumModel.planMemory(Fixture.BUNDLE, half).cache < plan.cache);
    }

    @Test
    public void limit() {
        ModelOptions little = ModelOptions.builder().memoryLimit(1).build();
        HeliumException error =
                Fixture.assertFails(Status.OUT_OF_MEMORY, () -> HeliumModel.open(Fixture.BUNDLE, little));
        assertTrue(error.getMessage(), error.getMessage().contains("expected"));
        ModelOptions available = ModelOptions.builder().memoryLimit(ModelOptions.MEMORY_AVAILABLE).build();
        HeliumModel.open(Fixture.BUNDLE, available).close();
    }

    private static long residentBytes() throws Exception {
        for (String line : Files.readAllLines(Paths.get("/proc/self/status"))) {
            if (line.startsWith("VmRSS:")) return Long.parseLong(line.replaceAll("\\D", "")) * 1024;
        }
        throw new AssertionError("/proc/self/status has no VmRSS");
    }

    private static void useConversations(int count) {
        GenerationRequest request = GenerationRequest.builder()
                .prompt("Once upon a time").stop("\n").maxNewTokens(2).ignoreEos(true).build();
        Recorder heard = new Recorder();
        for (int i = 0; i < count; ++i) {
            try (HeliumConversation conversation = Fixture.conversation()) {
                conversation.generate(request, heard);
                conversation.ids();
                Fixture.assertFails(Status.INVALID_ARGUMENT, () -> conversation.truncate(1000));
            }
        }
    }

    private static void settle() throws Exception {
        for (int i = 0; i < 3; ++i) {
            System.gc();
            Thread.sleep(50);
        }
    }

    /** The heap has its full size from the start (run.py), so what grows is native. */
    @Test
    public void thousandConversationsLeaveNothing() throws Exception {
        assumeTrue("no /proc/self/status on this system", Files.exists(Paths.get("/proc/self/status")));
        useConversations(200);
        settle();
        long before = residentBytes();
        useConversations(1000);
        settle();
        long grown = residentBytes() - before;
        // One leaked conversation of this prompt holds more than 20 KB of keys and values: 20 MB in all.
        assertTrue("resident memory grew by " + grown + " bytes", grown < 8_000_000);
    }

    @Test
    public void modelsLeaveNothing() throws Exception {
        assumeTrue("no /proc/self/status on this system", Files.exists(Paths.get("/proc/self/status")));
        for (int i = 0; i < 5; ++i) HeliumModel.open(Fixture.BUNDLE).close();
        settle();
        long before = residentBytes();
        for (int i = 0; i < 20; ++i) HeliumModel.open(Fixture.BUNDLE).close();
        settle();
        long grown = residentBytes() - before;
        long weights = Fixture.model().info().weightsBytes;
        assertTrue("resident memory grew by " + grown + " bytes", grown < 5 * weights);
    }
}
