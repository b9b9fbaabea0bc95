package org.heliumonnx;

import static org.junit.Assert.assertEquals;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.Test;

/** Conversations beside each other give what each gives alone. */
public class ParallelTest {
    private static String text(int seed) {
        Recorder heard = new Recorder();
        GenerationRequest request = GenerationRequest.builder()
                .prompt("Number " + seed).maxNewTokens(60).temperature(0.9).seed(seed).ignoreEos(true).build();
        try (HeliumConversation conversation = Fixture.conversation()) {
            conversation.generate(request, heard);
        }
        return heard.text();
    }

    @Test(timeout = 120_000)
    public void conversationsAreIndependent() throws Exception {
        List<String> alone = new ArrayList<>();
        for (int seed = 0; seed < 8; ++seed) alone.add(text(seed));
        ExecutorService threads = Executors.newFixedThreadPool(4);
        List<Future<String>> beside = new ArrayList<>();
        for (int seed = 0; seed < 8; ++seed) {
            int chosen = seed;
            beside.add(threads.submit(() -> text(chosen)));
        }
        for (int seed = 0; seed < 8; ++seed) assertEquals(alone.get(seed), beside.get(seed).get());
        threads.shutdown();
    }
}
