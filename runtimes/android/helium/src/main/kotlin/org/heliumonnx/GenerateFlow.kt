package org.heliumonnx

import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.runInterruptible
import kotlinx.coroutines.withContext

/**
 * The text that continues [request], as a cold Flow: each collection generates it anew, on a thread of its own, which
 * waits while [capacity] pieces are not taken. Where the collecting coroutine is cancelled or takes no more, generation
 * is cancelled, and the collection ends when the conversation is free again. No dispatcher of the collector is blocked.
 *
 * Needs kotlinx-coroutines-core, which the library does not bring.
 *
 * @param onResult is called in the collector's context when the text has ended, but not where it was cancelled.
 */
fun HeliumConversation.generateFlow(
    request: GenerationRequest,
    capacity: Int = 64,
    onResult: (GenerationResult) -> Unit = {}
): Flow<String> = flow {
    val pieces = stream(request, capacity)
    try {
        while (true) {
            emit(runInterruptible(Dispatchers.IO) { if (pieces.hasNext()) pieces.next() else null } ?: break)
        }
        pieces.result?.let(onResult)
    } finally {
        withContext(NonCancellable + Dispatchers.IO) { pieces.close() }
    }
}
