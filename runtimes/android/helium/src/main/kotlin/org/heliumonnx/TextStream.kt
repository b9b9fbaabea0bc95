package org.heliumonnx

import java.io.Closeable
import java.lang.ref.WeakReference
import java.util.concurrent.ArrayBlockingQueue
import java.util.concurrent.TimeUnit

/**
 * The text that continues [request], piece by piece:
 *
 *     conversation.stream(request).use { pieces -> for (piece in pieces) print(piece) }
 *
 * It is generated on a thread of its own, which waits while [capacity] pieces are not taken. Until the stream has
 * ended or is closed, other calls with the conversation are BUSY. A stream that is neither read to its end nor closed
 * is ended when the garbage collector finds it.
 */
@JvmOverloads
fun HeliumConversation.stream(request: GenerationRequest, capacity: Int = 64): TextStream =
    TextStream(this, request, capacity)

/** See [stream]. One thread reads; any thread may close. As a Sequence: `asSequence()`. */
class TextStream internal constructor(
    private val conversation: HeliumConversation,
    request: GenerationRequest,
    capacity: Int
) : Iterator<String>, Closeable {
    private val handOff = HandOff(capacity, WeakReference(this))
    private val thread = Thread(Generation(conversation, request, handOff), "helium-onnx-stream")
    private var piece: String? = null
    private var ended = false

    init {
        thread.isDaemon = true
        thread.start()
    }

    /** How the text ended; null until then, and where it failed. */
    val result: GenerationResult? get() = handOff.result

    /** Waits for text. What generate threw is thrown here; an interrupt too, as InterruptedException. */
    override fun hasNext(): Boolean {
        while (piece == null && !ended) {
            val item = handOff.items.take()
            if (item is Piece) piece = item.text else ended = true
            if (item is End && item.failure != null) throw item.failure
        }
        return piece != null
    }

    override fun next(): String {
        if (!hasNext()) throw NoSuchElementException("the text has ended")
        return piece!!.also { piece = null }
    }

    /** Ends the text. Waits for that, one token at most or a part of the prompt: then the conversation is free. */
    override fun close() {
        handOff.close(conversation)
        joinUninterruptibly()
        handOff.items.clear()
        handOff.items.offer(End(null)) // for a reader that is waiting, on another thread
    }

    private fun joinUninterruptibly() {
        var interrupted = false
        while (true) {
            try {
                thread.join()
                break
            } catch (error: InterruptedException) {
                interrupted = true
            }
        }
        if (interrupted) Thread.currentThread().interrupt()
    }
}

private sealed class Item
private class Piece(val text: String) : Item()
private class End(val failure: Throwable?) : Item()

/** Between the two threads. It does not hold the stream, so that one that nobody reads can be collected. */
private class HandOff(capacity: Int, private val stream: WeakReference<TextStream>) {
    val items = ArrayBlockingQueue<Item>(capacity)
    @Volatile var result: GenerationResult? = null
        private set
    @Volatile private var closed = false
    private var ended = false

    val wanted get() = !closed && stream.get() != null

    /** Waits for room. False: nobody wants it. */
    fun put(item: Item): Boolean {
        while (wanted) {
            if (items.offer(item, 100, TimeUnit.MILLISECONDS)) return true
        }
        return false
    }

    /** From here on the conversation may serve others. */
    fun end(result: GenerationResult?, failure: Throwable?) {
        synchronized(this) { ended = true }
        this.result = result
        put(End(failure))
    }

    /** Cancels this text, but not another one that the conversation may have begun after it. */
    fun close(conversation: HeliumConversation) {
        closed = true
        items.clear() // for a writer that is waiting
        synchronized(this) {
            if (ended) return
            try {
                conversation.cancel()
            } catch (error: HeliumException) {
                if (error.status != HeliumException.Status.CLOSED) throw error // a closed one ends by itself
            }
        }
    }
}

/** What the thread does. A cancel that comes before the text begins has no effect, so callbacks ask what is wanted. */
private class Generation(
    private val conversation: HeliumConversation,
    private val request: GenerationRequest,
    private val handOff: HandOff
) : Runnable, TextListener {
    override fun run() {
        try {
            handOff.end(conversation.generate(request, this), null)
        } catch (failure: Throwable) {
            handOff.end(null, failure)
        }
    }

    override fun onText(text: String) = handOff.put(Piece(text))
    override fun onToken(id: Int) = handOff.wanted
    override fun onPrefill(done: Long, of: Long) = handOff.wanted
}
