package org.heliumonnx.sample

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.InterruptedIOException
import java.net.HttpURLConnection
import java.net.URL
import java.security.MessageDigest

/** One file of known size and SHA-256. It comes as "name.part", by HTTP's Range where a beginning is there already. */
class RemoteFile(private val url: URL, private val target: File, val size: Long, private val sha256: String) {
    private val part = File(target.path + ".part")

    /** Bytes that are there, whole or not. */
    val held get() = maxOf(target.length(), part.length())

    /** Throws IOException; the part stays, unless its bytes are not the file's. */
    fun fetch(onProgress: (done: Long) -> Unit) {
        if (target.exists() && target.length() == size && digest(target) == sha256) {
            onProgress(size)
            return
        }
        target.parentFile!!.mkdirs()
        if (part.length() > size) part.delete()
        val resumed = part.length() > 0
        receiveAll(onProgress)
        if (resumed && digest(part) != sha256) { // the beginning may be of another version: once more, from nothing
            part.delete()
            receiveAll(onProgress)
        }
        val found = digest(part)
        if (found != sha256) {
            part.delete()
            throw problem("$url is damaged", "SHA-256 $found", sha256, "try again, or check the server's files")
        }
        renamed(part, target)
        onProgress(size)
    }

    private fun receiveAll(onProgress: (done: Long) -> Unit) {
        if (size == 0L) part.createNewFile()
        while (part.length() < size) {
            val before = part.length()
            try {
                receive(before, onProgress)
                if (part.length() == before) {
                    throw problem("$url ended early", "$before bytes", "$size", "check the server's files")
                }
            } catch (error: IOException) { // a connection that brought something is worth another
                if (part.length() == before || Thread.currentThread().isInterrupted) throw error
            }
        }
    }

    private fun receive(from: Long, onProgress: (done: Long) -> Unit) {
        val connection = connection(url)
        try {
            if (from > 0) connection.setRequestProperty("Range", "bytes=$from-")
            val range = connection.getHeaderField("Content-Range").orEmpty()
            val goesOn = connection.responseCode == 206 && range.startsWith("bytes $from-")
            if (!goesOn) answered(connection, 200)
            FileOutputStream(part, goesOn).use { out ->
                copy(connection, out, if (goesOn) from else 0, onProgress)
                out.fd.sync()
            }
        } finally {
            connection.disconnect()
        }
    }

    private fun copy(connection: HttpURLConnection, out: FileOutputStream, from: Long, onProgress: (Long) -> Unit) {
        var length = from
        val buffer = ByteArray(1 shl 16)
        connection.inputStream.use { input ->
            while (true) {
                val count = input.read(buffer)
                if (count < 0) return
                if (Thread.currentThread().isInterrupted) throw InterruptedIOException("the download was interrupted")
                length += count
                if (length > size) throw problem("$url is longer", "$length bytes", "$size", "check the server's files")
                out.write(buffer, 0, count)
                onProgress(length)
            }
        }
    }

    private fun digest(file: File): String {
        val digest = MessageDigest.getInstance("SHA-256")
        file.inputStream().use { input ->
            val buffer = ByteArray(1 shl 16)
            while (true) {
                val count = input.read(buffer)
                if (count < 0) break
                digest.update(buffer, 0, count)
            }
        }
        return digest.digest().joinToString("") { "%02x".format(it) }
    }
}

internal fun connection(url: URL) = (url.openConnection() as HttpURLConnection).apply {
    connectTimeout = 15_000
    readTimeout = 30_000
    setRequestProperty("Accept-Encoding", "identity") // Android asks for gzip by itself, which has no Range
}

internal fun problem(what: String, found: String, expected: String, remedy: String) =
    IOException("$what: found $found; expected $expected; $remedy")

internal fun answered(connection: HttpURLConnection, expected: Int) {
    val found = connection.responseCode
    if (found != expected) throw problem("${connection.url} cannot be had", "HTTP $found", "$expected", "check the URL")
}

internal fun renamed(from: File, to: File) {
    if (!from.renameTo(to)) throw IOException("$from cannot be renamed to $to: check the storage")
}
