package org.heliumonnx;

import static org.junit.Assert.assertEquals;

import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;
import org.junit.Test;

/** The same request gives the same tokens and text as the C sample. */
public class SampleParityTest {
    private static void compare(String prompt, GenerationRequest.Builder request, String... options) throws Exception {
        Recorder heard = new Recorder();
        try (HeliumConversation conversation = Fixture.conversation()) {
            conversation.generate(request.prompt(prompt).build(), heard);
        }
        String[] withIds = Arrays.copyOf(options, options.length + 1);
        withIds[options.length] = "--ids";
        List<Integer> ids = Arrays.stream(Fixture.sample(prompt, withIds).split("\n"))
                .map(Integer::valueOf)
                .collect(Collectors.toList());
        assertEquals(ids, heard.ids);
        assertEquals(Fixture.sample(prompt, options), heard.text() + "\n");
    }

    @Test
    public void greedy() throws Exception {
        compare("Once upon a time", GenerationRequest.builder().maxNewTokens(64), "--max-new-tokens", "64");
    }

    /** What is not set in either. */
    @Test
    public void defaults() throws Exception {
        compare("The", GenerationRequest.builder());
    }

    @Test
    public void seeded() throws Exception {
        compare(
                "Il était une fois",
                GenerationRequest.builder()
                        .maxNewTokens(80).temperature(0.8).topK(40).topP(0.95).minP(0.02).repetitionPenalty(1.1)
                        .seed(-1),
                "--max-new-tokens", "80", "--temperature", "0.8", "--top-k", "40", "--top-p", "0.95",
                "--min-p", "0.02", "--repetition-penalty", "1.1", "--seed", "18446744073709551615");
    }

    /** All tokens nearly alike: pieces of characters, and bytes that are none. */
    @Test
    public void anyTokens() throws Exception {
        compare(
                "a",
                GenerationRequest.builder().maxNewTokens(400).temperature(1000).seed(7).ignoreEos(true),
                "--max-new-tokens", "400", "--temperature", "1000", "--seed", "7", "--ignore-eos");
    }

    @Test
    public void emojiPrompt() throws Exception {
        compare(
                "👍🏽 👨‍👩‍👧 𝄞 日本",
                GenerationRequest.builder().maxNewTokens(20).temperature(1).seed(3),
                "--max-new-tokens", "20", "--temperature", "1", "--seed", "3");
    }

    /** A NUL in the middle of a prompt is a character like others. */
    @Test
    public void nulInPrompt() throws Exception {
        compare("one\0two\0", GenerationRequest.builder().maxNewTokens(20), "--max-new-tokens", "20");
    }

    @Test
    public void stopStrings() throws Exception {
        compare(
                "Once upon a time",
                GenerationRequest.builder().maxNewTokens(200).stop("zzz👍", "."),
                "--max-new-tokens", "200", "--stop", "zzz👍", "--stop", ".");
    }
}
