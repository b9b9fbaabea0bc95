package org.heliumonnx

import java.util.concurrent.atomic.AtomicBoolean
import kotlin.concurrent.thread
import org.heliumonnx.HeliumException.Status
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test

/** Text from a thread of its own, that may be left at any time. */
class TextStreamTest {
    private val few = generationRequest {
        prompt("Once upon a time")
        maxNewTokens(40)
        temperature(0.8)
        seed(4)
        ignoreEos(true)
    }
    private val endless = Fixture.endless().build()

    private fun expected(request: GenerationRequest): String {
        val heard = Recorder()
        Fixture.conversation().use { it.generate(request, heard) }
        return heard.text()
    }

    @Test(timeout = 60_000)
    fun piecesJoinToTheText() {
        for (capacity in listOf(1, 64)) {
            Fixture.model().openConversation().use { conversation ->
                conversation.stream(few, capacity).use { pieces ->
                    val text = StringBuilder()
                    for (piece in pieces) text.append(piece)
                    assertEquals(expected(few), text.toString())
                    assertEquals(40, pieces.result!!.newTokens)
                    assertFalse(pieces.hasNext())
                }
            }
        }
    }

    @Test(timeout = 60_000)
    fun isASequence() {
        Fixture.conversation().use { conversation ->
            assertEquals(expected(few), conversation.stream(few).asSequence().joinToString(""))
        }
    }

    @Test(timeout = 60_000)
    fun closedEarlyItFreesTheConversation() {
        Fixture.slidingConversation().use { conversation ->
            for (taken in 0..3) {
                val pieces = conversation.stream(endless)
                repeat(taken) { pieces.next() }
                pieces.close()
                assertTrue(conversation.ids().isNotEmpty() || taken == 0) // BUSY, were it not free
                assertEquals(FinishReason.CANCELLED, pieces.result!!.finish)
                assertFalse(pieces.hasNext())
                pieces.close()
            }
        }
    }

    /** A writer that waits for room notices the close at once. */
    @Test(timeout = 60_000)
    fun handOffIsBounded() {
        Fixture.slidingConversation().use { conversation ->
            val pieces = conversation.stream(endless, 2)
            pieces.next()
            Thread.sleep(300)
            val begun = System.nanoTime()
            pieces.close()
            assertTrue((System.nanoTime() - begun) / 1e9 < 5)
            assertTrue("${pieces.result!!.newTokens} tokens", pieces.result!!.newTokens < 40)
        }
    }

    private fun abandon(conversation: HeliumConversation) {
        for (piece in conversation.stream(endless, 4)) if (piece.isNotEmpty()) break
    }

    @Test(timeout = 60_000)
    fun abandonedItIsCollected() {
        Fixture.slidingConversation().use { conversation ->
            abandon(conversation)
            while (true) {
                System.gc()
                try {
                    conversation.ids()
                    break
                } catch (error: HeliumException) {
                    assertEquals(Status.BUSY, error.status)
                    Thread.sleep(20)
                }
            }
        }
    }

    @Test(timeout = 60_000)
    fun failuresReachTheReader() {
        val conversation = Fixture.slidingConversation()
        val pieces = conversation.stream(endless)
        pieces.next()
        conversation.close()
        Fixture.assertFails(Status.CLOSED) { while (pieces.hasNext()) pieces.next() }
        assertNull(pieces.result)
        pieces.close()
        Fixture.assertFails(Status.CLOSED) { conversation.stream(few).next() }
        Fixture.assertThrown(NoSuchElementException::class.java) { pieces.next() }
    }

    @Test(timeout = 60_000)
    fun closeWakesTheReader() {
        Fixture.slidingConversation().use { conversation ->
            val pieces = conversation.stream(endless)
            val ended = AtomicBoolean()
            val reader = thread {
                while (pieces.hasNext()) pieces.next()
                ended.set(true)
            }
            Thread.sleep(50)
            pieces.close()
            reader.join()
            assertTrue(ended.get())
        }
    }

    @Test(timeout = 60_000)
    fun closeLeavesTheNextTextAlone() {
        Fixture.conversation().use { conversation ->
            val first = conversation.stream(few)
            assertTrue(first.asSequence().count() > 0)
            conversation.stream(few).use { second ->
                first.close()
                assertEquals(expected(few), second.asSequence().joinToString(""))
                assertEquals(FinishReason.LENGTH, second.result!!.finish)
            }
        }
    }

    @Test(timeout = 60_000)
    fun interruptedReader() {
        Fixture.slidingConversation().use { conversation ->
            val pieces = conversation.stream(endless)
            Thread.currentThread().interrupt()
            Fixture.assertThrown(InterruptedException::class.java) { while (true) pieces.next() }
            pieces.close()
            conversation.ids()
        }
    }

    @Test
    fun builders() {
        val options = modelOptions { contextLength(64) }
        HeliumModel.open(Fixture.BUNDLE, options).use { assertEquals(64L, it.info().contextLength) }
    }
}
