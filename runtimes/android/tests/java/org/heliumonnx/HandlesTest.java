package org.heliumonnx;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.util.concurrent.CountDownLatch;
import org.heliumonnx.HeliumException.Status;
import org.junit.Test;

/** Models and conversations that are closed, in use, or never were. */
public class HandlesTest {
    private static final GenerationRequest FEW =
            GenerationRequest.builder().prompt("The").maxNewTokens(4).ignoreEos(true).build();

    @Test
    public void modelAfterClose() {
        HeliumModel model = HeliumModel.open(Fixture.BUNDLE);
        model.close();
        model.close();
        Fixture.assertFails(Status.CLOSED, model::info);
        Fixture.assertFails(Status.CLOSED, () -> model.encode("a"));
        Fixture.assertFails(Status.CLOSED, () -> model.decode(new int[] {1}));
        Fixture.assertFails(Status.CLOSED, () -> HeliumConversation.open(model));
        Fixture.assertFails(Status.CLOSED, () -> HeliumConversation.restore(model, "a"));
    }

    @Test
    public void conversationAfterClose() {
        HeliumConversation conversation = Fixture.conversation();
        conversation.generate(FEW);
        conversation.close();
        conversation.close();
        Fixture.assertFails(Status.CLOSED, () -> conversation.generate(FEW));
        Fixture.assertFails(Status.CLOSED, conversation::cancel);
        Fixture.assertFails(Status.CLOSED, conversation::ids);
        Fixture.assertFails(Status.CLOSED, () -> conversation.truncate(0));
        Fixture.assertFails(Status.CLOSED, () -> conversation.save("a"));
    }

    @Test
    public void conversationOutlivesItsModel() {
        HeliumModel model = HeliumModel.open(Fixture.BUNDLE);
        try (HeliumConversation conversation = HeliumConversation.open(model)) {
            model.close();
            assertEquals(4, conversation.generate(FEW).newTokens);
        }
    }

    /** Handles that were never given, by the natives themselves. */
    @Test
    public void handlesThatAreNone() {
        for (long handle : new long[] {0, -1, 1, 16L << 40, Long.MIN_VALUE}) {
            Fixture.assertFails(Status.CLOSED, () -> Native.modelInfo(handle));
            Fixture.assertFails(Status.CLOSED, () -> Native.conversationOpen(handle, 0, 0));
            Fixture.assertFails(Status.CLOSED, () -> Native.conversationIds(handle));
            Fixture.assertFails(Status.CLOSED, () -> Native.cancel(handle));
            Native.modelClose(handle);
            Native.conversationClose(handle);
        }
    }

    @Test(timeout = 60_000)
    public void twoThreadsOnOneConversation() throws Exception {
        try (HeliumConversation conversation = Fixture.slidingConversation()) {
            CountDownLatch begun = new CountDownLatch(1);
            Thread other = new Thread(() -> conversation.generate(Fixture.endless().build(), text -> {
                begun.countDown();
                return true;
            }));
            other.start();
            begun.await();
            Fixture.assertFails(Status.BUSY, () -> conversation.generate(FEW));
            Fixture.assertFails(Status.BUSY, conversation::ids);
            Fixture.assertFails(Status.BUSY, () -> conversation.truncate(0));
            HeliumException busy = Fixture.assertFails(Status.BUSY, () -> conversation.save("a"));
            assertTrue(busy.getMessage(), busy.getMessage().contains("found "));
            conversation.cancel();
            other.join();
            assertEquals(4, conversation.generate(FEW).newTokens);
        }
    }
}
