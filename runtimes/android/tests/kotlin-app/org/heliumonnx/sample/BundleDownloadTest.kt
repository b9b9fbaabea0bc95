package org.heliumonnx.sample

import com.sun.net.httpserver.HttpExchange
import com.sun.net.httpserver.HttpServer
import java.io.File
import java.io.IOException
import java.io.InterruptedIOException
import java.net.InetAddress
import java.net.InetSocketAddress
import java.util.concurrent.CopyOnWriteArrayList
import org.heliumonnx.Fixture
import org.heliumonnx.HeliumModel
import org.junit.After
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test

/** The sample app's download, from a server here that cuts connections, has no Range, or gives other bytes. */
class BundleDownloadTest {
    private val bundle = File(Fixture.BUNDLE)
    private val target = Fixture.temporary("bundle").toFile()
    private val requests = CopyOnWriteArrayList<String>()
    private var knowsRange = true
    private var cutAfter = Int.MAX_VALUE
    private var change: (String, ByteArray) -> ByteArray = { _, bytes -> bytes }

    private val server = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0).apply {
        createContext("/models/helium") { exchange -> answer(exchange) }
        start()
    }
    private val url = "http://localhost:${server.address.port}/models/helium/"

    @After
    fun stop() = server.stop(0)

    private fun answer(exchange: HttpExchange) {
        val path = exchange.requestURI.path.removePrefix("/models/helium/")
        val range = exchange.requestHeaders.getFirst("Range")
        requests.add(path + if (range == null) "" else " $range")
        val file = File(bundle, path)
        if (!file.isFile) {
            exchange.sendResponseHeaders(404, -1)
            exchange.close()
            return
        }
        val bytes = change(path, file.readBytes())
        val from = if (range == null || !knowsRange) 0 else range.removePrefix("bytes=").removeSuffix("-").toInt()
        if (from > 0) exchange.responseHeaders.add("Content-Range", "bytes $from-${bytes.size - 1}/${bytes.size}")
        exchange.sendResponseHeaders(if (from > 0) 206 else 200, (bytes.size - from).toLong())
        val sent = minOf(cutAfter, bytes.size - from)
        exchange.responseBody.write(bytes, from, sent)
        exchange.responseBody.flush()
        exchange.close()
    }

    private fun download(onProgress: (Long, Long) -> Unit = { _, _ -> }) = BundleDownload(url, target, onProgress)

    private fun assertWhole() {
        HeliumModel.planMemory(target.path)
        HeliumModel.open(target.path).close()
        assertTrue(target.walk().none { it.name.endsWith(".part") })
        assertArrayEquals(File(bundle, "helium.json").readBytes(), File(target, "helium.json").readBytes())
    }

    private val largest get() = bundle.walk().filter { it.isFile }.sortedBy { it.length() }.last()
    private val largestPath get() = largest.relativeTo(bundle).path

    @Test
    fun wholeBundle() {
        var last = 0L
        var total = 0L
        download { done, of ->
            assertTrue(done >= last && done <= of)
            last = done
            total = of
        }.run()
        assertEquals(total, last)
        assertWhole()
        val count = requests.size
        assertTrue(download().isComplete)
        download().run()
        assertEquals(count, requests.size)
    }

    /** Every connection breaks after 1.5 MB. */
    @Test
    fun brokenConnectionsAreResumed() {
        cutAfter = 1_500_000
        download().run()
        assertTrue(requests.contains("$largestPath bytes=1500000-"))
        assertWhole()
    }

    @Test
    fun nextAttemptGoesOn() {
        cutAfter = 1_000_000
        change = { path, bytes ->
            val resumes = requests.any { it.startsWith("$path bytes=") }
            if (path == largestPath && resumes) throw IOException("the server is gone") else bytes
        }
        Fixture.assertThrown(IOException::class.java) { download().run() }
        assertFalse(download().isComplete)
        cutAfter = Int.MAX_VALUE
        change = { _, bytes -> bytes }
        requests.clear()
        download().run()
        assertTrue(requests.toString(), requests.contains("$largestPath bytes=1000000-"))
        assertFalse("what was whole is not fetched again", requests.contains("config.json"))
        assertWhole()
    }

    @Test
    fun serverWithoutRange() {
        knowsRange = false
        File(target, largestPath + ".part").apply { parentFile.mkdirs() }.writeBytes(ByteArray(1000))
        download().run()
        assertWhole()
    }

    /** The first part is of another version of the file. */
    @Test
    fun resumedFromOtherBytes() {
        File(target, largestPath + ".part").apply { parentFile.mkdirs() }.writeBytes(ByteArray(1000))
        download().run()
        assertTrue(requests.contains("$largestPath bytes=1000-") && requests.contains(largestPath))
        assertWhole()
    }

    @Test
    fun damagedFile() {
        change = { path, bytes ->
            if (path == largestPath) bytes[bytes.size / 2] = (bytes[bytes.size / 2] + 1).toByte()
            bytes
        }
        val error = Fixture.assertThrown(IOException::class.java) { download().run() }
        assertTrue(error.message, error.message!!.contains("$largestPath is damaged: found SHA-256"))
        assertFalse(download().isComplete)
        assertFalse(File(target, largestPath).exists())
    }

    @Test
    fun otherLengths() {
        for (length in listOf(largest.length().toInt() - 1, largest.length().toInt() + 1)) {
            change = { path, bytes -> if (path == largestPath) bytes.copyOf(length) else bytes }
            Fixture.assertThrown(IOException::class.java) { download().run() }
            assertFalse(download().isComplete)
        }
    }

    @Test
    fun pathsOutOfTheBundle() {
        for (path in listOf("../evil", "/evil", "a//b", "a/../../evil", "helium.json", "")) {
            change = { _, _ -> """{"files": [{"path": "$path", "size": 1, "sha256": "00"}]}""".toByteArray() }
            val error = Fixture.assertThrown(IOException::class.java) { download().run() }
            assertTrue(error.message, error.message!!.contains("is no manifest: found a file '$path'"))
        }
        assertEquals(listOf("helium.json"), requests.distinct())
    }

    @Test
    fun noManifest() {
        change = { _, _ -> "<html>".toByteArray() }
        val error = Fixture.assertThrown(IOException::class.java) { download().run() }
        assertTrue(error.message, error.message!!.contains("is no manifest"))
        val missing = BundleDownload(url + "none", target) { _, _ -> }
        assertTrue(Fixture.assertThrown(IOException::class.java) { missing.run() }.message!!.contains("HTTP 404"))
    }

    @Test(timeout = 60_000)
    fun interruptEndsIt() {
        Fixture.assertThrown(InterruptedIOException::class.java) {
            download { done, _ -> if (done > 0) Thread.currentThread().interrupt() }.run()
        }
        assertTrue(Thread.interrupted())
        assertFalse(download().isComplete)
    }
}
