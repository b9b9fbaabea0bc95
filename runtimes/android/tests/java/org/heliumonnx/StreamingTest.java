package org.heliumonnx;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import java.util.Arrays;
import org.junit.Test;

/** What a listener hears, and what the result says of it. */
public class StreamingTest {
    @Test
    public void piecesJoinToTheTextOfTheTokens() {
        Recorder heard = new Recorder();
        try (HeliumConversation conversation = Fixture.conversation()) {
            conversation.generate(GenerationRequest.builder().prompt("Once upon").maxNewTokens(60).build(), heard);
            assertEquals(Fixture.model().decode(conversation.ids()), "Once upon" + heard.text());
        }
        assertTrue(heard.pieces.size() > 10);
    }

    @Test
    public void tokensAreThoseOfConversationAndResult() {
        Recorder heard = new Recorder();
        GenerationRequest request =
                GenerationRequest.builder().prompt("The").maxNewTokens(30).ignoreEos(true).seed(5).build();
        try (HeliumConversation conversation = Fixture.conversation()) {
            GenerationResult result = conversation.generate(request, heard);
            int[] prompt = Fixture.model().encode("The");
            int[] ids = conversation.ids();
            assertArrayEquals(prompt, Arrays.copyOf(ids, prompt.length));
            assertArrayEquals(
                    heard.ids.stream().mapToInt(Integer::intValue).toArray(),
                    Arrays.copyOfRange(ids, prompt.length, ids.length));
            assertEquals(30, result.newTokens);
            assertEquals(30, heard.ids.size());
            assertEquals(prompt.length, result.promptTokens);
            assertEquals(0, result.reusedTokens);
            assertEquals(FinishReason.LENGTH, result.finish);
            assertEquals(-1, result.stopIndex);
            assertEquals(5, result.seed);
            assertTrue(result.seconds > 0 && result.firstTokenSeconds > 0 && result.decodeTokensPerSecond > 0);
        }
    }

    @Test
    public void prefillTellsOfALongPrompt() {
        Recorder heard = new Recorder();
        int[] ids = new int[1200];
        Arrays.fill(ids, 300);
        ids[0] = 1;
        try (HeliumConversation conversation = Fixture.conversation()) {
            GenerationResult result =
                    conversation.generate(GenerationRequest.builder().promptIds(ids).maxNewTokens(0).build(), heard);
            assertEquals(0, result.newTokens);
            assertEquals(1200, result.promptTokens);
            assertArrayEquals(ids, conversation.ids());
        }
        assertTrue(heard.prefill.size() > 2);
        assertEquals(1200L, (long) heard.prefill.get(heard.prefill.size() - 2));
        assertEquals(1200L, (long) heard.prefill.get(1));
    }

    @Test
    public void stopStringIsNotInTheText() {
        Recorder heard = new Recorder();
        try (HeliumConversation conversation = Fixture.conversation()) {
            GenerationResult result = conversation.generate(
                    GenerationRequest.builder().prompt("The").maxNewTokens(200).stop("never👍", " ").build(), heard);
            assertEquals(FinishReason.STOP, result.finish);
            assertEquals(1, result.stopIndex);
            assertFalse(heard.text().contains(" "));
        }
    }

    @Test
    public void appendGoesOnAndReusesWhatIsHeld() {
        GenerationRequest first = GenerationRequest.builder().prompt("The").maxNewTokens(20).ignoreEos(true).build();
        GenerationRequest whole = GenerationRequest.builder().prompt("The").maxNewTokens(40).ignoreEos(true).build();
        GenerationRequest rest = GenerationRequest.builder()
                .promptMode(PromptMode.APPEND).maxNewTokens(20).ignoreEos(true).build();
        try (HeliumConversation one = Fixture.conversation(); HeliumConversation two = Fixture.conversation()) {
            one.generate(whole);
            two.generate(first);
            GenerationResult result = two.generate(rest);
            assertTrue(result.reusedTokens > 0);
            assertArrayEquals(one.ids(), two.ids());
            two.truncate(10);
            assertArrayEquals(Arrays.copyOf(one.ids(), 10), two.ids());
        }
    }

    /** More pieces than a native method's table of local references holds by itself (16). */
    @Test
    public void manyPieces() {
        Recorder heard = new Recorder();
        try (HeliumConversation conversation = Fixture.slidingConversation()) {
            conversation.generate(Fixture.endless().maxNewTokens(3000).build(), heard);
        }
        assertEquals(3000, heard.ids.size());
        assertTrue(heard.pieces.size() > 1000);
    }
}
