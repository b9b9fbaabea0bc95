package org.heliumonnx.sample

import java.io.ByteArrayOutputStream
import java.io.File
import java.io.IOException
import java.net.URI
import java.net.URL
import org.json.JSONException
import org.json.JSONObject

/**
 * Fetches the bundle at [url], a folder on a server, into [folder]: file by file after the list in helium.json. Each
 * file is held against its SHA-256 before it gets its name, and helium.json gets its name last, so a folder with
 * helium.json is complete. An attempt that ended early is gone on with.
 *
 * Interrupting the thread ends it. [onProgress] is told bytes, of all files, on this thread.
 */
class BundleDownload(
    private val url: String,
    private val folder: File,
    private val onProgress: (done: Long, of: Long) -> Unit
) {
    private val manifest = File(folder, MANIFEST)

    val isComplete get() = manifest.exists()

    /** Throws IOException; what was fetched until then stays for the next attempt. */
    fun run() {
        if (isComplete) return
        if (!folder.isDirectory && !folder.mkdirs()) throw IOException("$folder cannot be made: check the storage")
        val text = fetchManifest()
        val files = files(text)
        val total = files.fold(0L) { sum, file -> sum + file.size }
        val missing = total - files.fold(0L) { sum, file -> sum + file.held }
        if (missing > folder.usableSpace) {
            throw problem("too little storage", "${folder.usableSpace} bytes", "$missing", "free some")
        }
        var before = 0L
        for (file in files) {
            file.fetch { onProgress(before + it, total) }
            before += file.size
        }
        val part = File(folder, "$MANIFEST.part")
        part.writeBytes(text)
        renamed(part, manifest)
    }

    private fun fetchManifest(): ByteArray {
        val connection = connection(at(MANIFEST))
        try {
            answered(connection, 200)
            val bytes = ByteArrayOutputStream()
            connection.inputStream.use { input ->
                val buffer = ByteArray(1 shl 16)
                while (bytes.size() <= MANIFEST_BYTES) {
                    val count = input.read(buffer)
                    if (count < 0) return bytes.toByteArray()
                    bytes.write(buffer, 0, count)
                }
            }
            throw noManifest("more than $MANIFEST_BYTES bytes")
        } finally {
            connection.disconnect()
        }
    }

    private fun files(text: ByteArray): List<RemoteFile> {
        try {
            val files = JSONObject(String(text, Charsets.UTF_8)).getJSONArray("files")
            return (0 until files.length()).map { files.getJSONObject(it) }.map {
                val path = it.getString("path")
                val size = it.getLong("size")
                if (!isPlain(path) || size < 0) throw noManifest("a file '$path' of $size bytes")
                RemoteFile(at(path), File(folder, path), size, it.getString("sha256"))
            }
        } catch (error: JSONException) {
            throw noManifest(error.message)
        }
    }

    /** A server must not choose where in the device's storage it writes. */
    private fun isPlain(path: String) =
        path != MANIFEST && path.split('/').all { it.isNotEmpty() && it != "." && it != ".." && !it.contains('\\') }

    private fun noManifest(found: String?) =
        problem("$url/$MANIFEST is no manifest", "$found", "what helium-onnx export writes", "check the URL")

    private fun at(path: String) = URL(url.trimEnd('/') + URI(null, null, "/$path", null).rawPath)

    private companion object {
        const val MANIFEST = "helium.json"
        const val MANIFEST_BYTES = 64 shl 20
    }
}
