package org.heliumonnx

import java.util.concurrent.atomic.AtomicInteger
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.heliumonnx.HeliumException.Status
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

/** A Flow whose collection, once it ends in whatever way, leaves the conversation free. */
class GenerateFlowTest {
    private val few = generationRequest {
        prompt("Once upon a time")
        maxNewTokens(40)
        ignoreEos(true)
    }
    private val endless = Fixture.endless().build()

    private fun collector(onPiece: suspend (String) -> Unit) = object : FlowCollector<String> {
        override suspend fun emit(value: String) = onPiece(value)
    }

    @Test(timeout = 60_000)
    fun piecesJoinToTheText() {
        val heard = Recorder()
        Fixture.conversation().use { it.generate(few, heard) }
        Fixture.conversation().use { conversation ->
            val text = StringBuilder()
            var result: GenerationResult? = null
            val flow = conversation.generateFlow(few) { result = it }
            runBlocking { flow.collect(collector { text.append(it) }) }
            assertEquals(heard.text(), text.toString())
            assertEquals(40, result!!.newTokens)
            text.setLength(0)
            runBlocking { flow.collect(collector { text.append(it) }) } // cold: once more
            assertEquals(heard.text(), text.toString())
        }
    }

    @Test(timeout = 60_000)
    fun cancelledCoroutineCancelsGeneration() {
        Fixture.slidingConversation().use { conversation ->
            val pieces = AtomicInteger()
            runBlocking {
                val job = launch(Dispatchers.Default) {
                    conversation.generateFlow(endless).collect(collector { pieces.incrementAndGet() })
                }
                while (pieces.get() < 5) delay(1)
                job.cancelAndJoin()
            }
            conversation.ids() // BUSY, were it not free
        }
    }

    /** At whatever moment: before the first piece, while one is waited for, while one is handed on. */
    @Test(timeout = 60_000)
    fun cancelledAtAnyTime() {
        Fixture.slidingConversation().use { conversation ->
            for (wait in 0L..20L) {
                runBlocking {
                    val flow = conversation.generateFlow(endless, 1)
                    val slow = collector { if (wait % 2 == 0L) delay(1_000_000) }
                    val job = launch(Dispatchers.Default) { flow.collect(slow) }
                    delay(wait)
                    job.cancelAndJoin()
                }
                conversation.ids()
            }
        }
    }

    @Test(timeout = 60_000)
    fun collectorThatTakesNoMore() {
        Fixture.slidingConversation().use { conversation ->
            for (error in listOf(IllegalStateException("enough"), CancellationException("enough"))) {
                val thrown = Fixture.assertThrown(Exception::class.java) {
                    runBlocking { conversation.generateFlow(endless).collect(collector { throw error }) }
                }
                assertEquals("enough", thrown.message)
                assertTrue(conversation.ids().isNotEmpty())
            }
        }
    }

    @Test(timeout = 60_000)
    fun failuresReachTheCollector() {
        val conversation = Fixture.conversation()
        conversation.close()
        Fixture.assertFails(Status.CLOSED) { runBlocking { conversation.generateFlow(few).collect(collector {}) } }
    }
}
