package org.heliumonnx;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertSame;
import static org.junit.Assert.assertTrue;

import java.io.IOException;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.Test;

/** A text that is ended before its time: cancel, a listener's answer, an exception, close. */
public class EndingTest {
    private static final GenerationRequest ENDLESS = Fixture.endless().build();

    private static void assertUsable(HeliumConversation conversation) {
        GenerationRequest few = GenerationRequest.builder()
                .promptMode(PromptMode.APPEND).prompt(" and").maxNewTokens(3).ignoreEos(true).build();
        assertEquals(3, conversation.generate(few).newTokens);
    }

    private static Thread after(Recorder heard, Runnable action) {
        Thread thread = new Thread(() -> {
            while (heard.ids.size() < 20) Thread.yield();
            action.run();
        });
        thread.start();
        return thread;
    }

    @Test(timeout = 60_000)
    public void cancelFromAnotherThread() throws Exception {
        try (HeliumConversation conversation = Fixture.slidingConversation()) {
            Recorder heard = new Recorder();
            Thread other = after(heard, conversation::cancel);
            GenerationResult result = conversation.generate(ENDLESS, heard);
            other.join();
            assertEquals(FinishReason.CANCELLED, result.finish);
            assertTrue(result.newTokens >= 20);
            assertUsable(conversation);
        }
    }

    @Test
    public void cancelWithoutAText() {
        try (HeliumConversation conversation = Fixture.conversation()) {
            conversation.cancel();
            assertUsable(conversation);
        }
    }

    @Test(timeout = 60_000)
    public void cancelWithinACallback() {
        try (HeliumConversation conversation = Fixture.slidingConversation()) {
            GenerationResult result = conversation.generate(ENDLESS, text -> {
                conversation.cancel();
                return true;
            });
            assertEquals(FinishReason.CANCELLED, result.finish);
            assertUsable(conversation);
        }
    }

    /** Counts calls, and at the third of one kind does as it is told. */
    private abstract static class Third implements TextListener {
        final AtomicInteger calls = new AtomicInteger();
        int callsAtThird;
        private final String kind;
        private int seen;

        Third(String kind) {
            this.kind = kind;
        }

        abstract boolean third();

        private boolean called(String name) {
            int count = calls.incrementAndGet();
            if (!name.equals(kind) || ++seen < (kind.equals("prefill") ? 1 : 3)) return true;
            callsAtThird = count;
            return third();
        }

        @Override
        public boolean onText(String text) {
            return called("text");
        }

        @Override
        public boolean onToken(int id) {
            return called("token");
        }

        @Override
        public boolean onPrefill(long done, long of) {
            return called("prefill");
        }
    }

    @Test(timeout = 60_000)
    public void answerOfFalse() {
        for (String kind : new String[] {"prefill", "token", "text"}) {
            try (HeliumConversation conversation = Fixture.slidingConversation()) {
                Third listener = new Third(kind) {
                    @Override
                    boolean third() {
                        return false;
                    }
                };
                assertEquals(kind, FinishReason.CANCELLED, conversation.generate(ENDLESS, listener).finish);
                assertEquals(kind, listener.callsAtThird, listener.calls.get());
                assertUsable(conversation);
            }
        }
    }

    @SuppressWarnings("unchecked")
    private static <T extends Throwable> void sneak(Throwable error) throws T {
        throw (T) error;
    }

    @Test(timeout = 60_000)
    public void exceptionIsThrownToTheCaller() {
        for (String kind : new String[] {"prefill", "token", "text"}) {
            Throwable[] errors = {new IllegalStateException("x"), new IOException("x"), new AssertionError("x")};
            for (Throwable error : errors) {
                try (HeliumConversation conversation = Fixture.slidingConversation()) {
                    Third listener = new Third(kind) {
                        @Override
                        boolean third() {
                            EndingTest.<RuntimeException>sneak(error);
                            return true;
                        }
                    };
                    assertSame(
                            error,
                            Fixture.assertThrown(Throwable.class, () -> conversation.generate(ENDLESS, listener)));
                    assertEquals(kind, listener.callsAtThird, listener.calls.get());
                    assertUsable(conversation);
                }
            }
        }
    }

    @Test(timeout = 60_000)
    public void closeWithinACallback() {
        HeliumConversation conversation = Fixture.slidingConversation();
        Fixture.assertFails(HeliumException.Status.CLOSED, () -> conversation.generate(ENDLESS, text -> {
            conversation.close();
            return true;
        }));
    }

    @Test(timeout = 60_000)
    public void exceptionComesBeforeWhatItLedTo() {
        HeliumConversation conversation = Fixture.slidingConversation();
        IllegalStateException error = new IllegalStateException("first");
        assertSame(error, Fixture.assertThrown(Throwable.class, () -> conversation.generate(ENDLESS, text -> {
            conversation.close();
            throw error;
        })));
    }

    @Test(timeout = 60_000)
    public void closeFromAnotherThread() throws Exception {
        HeliumConversation conversation = Fixture.slidingConversation();
        Recorder heard = new Recorder();
        Thread other = after(heard, conversation::close);
        Fixture.assertFails(HeliumException.Status.CLOSED, () -> conversation.generate(ENDLESS, heard));
        other.join();
    }

    /** Another conversation may be used within a callback, and its failures stay its own. */
    @Test
    public void callsWithinACallback() {
        try (HeliumConversation outer = Fixture.conversation(); HeliumConversation inner = Fixture.conversation()) {
            GenerationRequest few = GenerationRequest.builder().prompt("The").maxNewTokens(4).ignoreEos(true).build();
            GenerationResult result = outer.generate(few, text -> {
                assertEquals(4, inner.generate(few).newTokens);
                Fixture.assertFails(HeliumException.Status.BUSY, outer::ids);
                return true;
            });
            assertEquals(FinishReason.LENGTH, result.finish);
            assertEquals(4, result.newTokens);
        }
    }
}
