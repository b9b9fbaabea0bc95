// What generateFlow needs of kotlinx-coroutines 1.3.6 and later, for the tests: Debian's is 1.0.1, which has no Flow.
// The signatures are those of kotlinx.coroutines; nothing of this is in the library.
package kotlinx.coroutines.flow

interface FlowCollector<in T> {
    suspend fun emit(value: T)
}

interface Flow<out T> {
    suspend fun collect(collector: FlowCollector<T>)
}

fun <T> flow(block: suspend FlowCollector<T>.() -> Unit): Flow<T> = object : Flow<T> {
    override suspend fun collect(collector: FlowCollector<T>) = collector.block()
}
