package kotlinx.coroutines

import kotlin.coroutines.CoroutineContext
import kotlin.coroutines.EmptyCoroutineContext
import kotlin.coroutines.coroutineContext

/** As in 1.3.6 and later: cancelling interrupts the thread of [block], and is told when that has ended. */
@UseExperimental(InternalCoroutinesApi::class)
suspend fun <T> runInterruptible(context: CoroutineContext = EmptyCoroutineContext, block: () -> T): T =
    withContext(context) {
        val thread = Thread.currentThread()
        val job = coroutineContext[Job]!!
        var running = true
        val handle = job.invokeOnCompletion(onCancelling = true, invokeImmediately = true) {
            synchronized(thread) { if (running) thread.interrupt() }
        }
        try {
            block()
        } catch (error: InterruptedException) {
            throw CancellationException("blocking call was interrupted due to parent cancellation")
        } finally {
            synchronized(thread) { running = false }
            handle.dispose()
            Thread.interrupted()
        }
    }
