package org.heliumonnx.sample

import android.app.Activity
import android.os.Bundle
import android.view.View
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView
import java.io.File
import java.io.IOException
import java.util.concurrent.Executors
import java.util.concurrent.Future
import org.heliumonnx.ConversationOptions
import org.heliumonnx.HeliumConversation
import org.heliumonnx.HeliumException
import org.heliumonnx.HeliumModel
import org.heliumonnx.ModelOptions
import org.heliumonnx.TextListener
import org.heliumonnx.generationRequest
import org.heliumonnx.modelOptions
import org.heliumonnx.openConversation

/** A prompt, the text that continues it, a button that stops it, and what it took. */
class MainActivity : Activity() {
    /** All that touches model and conversation runs here, but for cancel. */
    private val worker = Executors.newSingleThreadExecutor()
    private lateinit var preparing: Future<*>
    private var model: HeliumModel? = null
    @Volatile private var conversation: HeliumConversation? = null
    @Volatile private var stopped = false

    private lateinit var prompt: EditText
    private lateinit var button: Button
    private lateinit var output: TextView
    private lateinit var status: TextView

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(views())
        beginPreparing()
    }

    override fun onDestroy() {
        super.onDestroy()
        stop()
        preparing.cancel(true) // interrupts a download
        worker.execute {
            conversation?.close()
            model?.close()
        }
        worker.shutdown()
    }

    private fun views(): View {
        prompt = EditText(this).apply { setText("Once upon a time") }
        button = Button(this)
        output = TextView(this).apply { textSize = 16f }
        status = TextView(this)
        return LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            fitsSystemWindows = true
            setPadding(32, 32, 32, 32)
            addView(prompt)
            addView(button)
            addView(status)
            addView(
                ScrollView(context).apply { addView(output) },
                LinearLayout.LayoutParams(LinearLayout.LayoutParams.MATCH_PARENT, 0, 1f)
            )
        }
    }

    private fun showButton(text: String, action: () -> Unit) {
        button.text = text
        button.isEnabled = true
        button.setOnClickListener { action() }
    }

    private fun beginPreparing() {
        button.isEnabled = false
        preparing = worker.submit(Runnable {
            val ready = guarded { prepare() }
            runOnUiThread {
                if (ready) showButton("Generate") { begin() } else showButton("Retry") { beginPreparing() }
            }
        })
    }

    private fun begin() {
        val text = prompt.text.toString()
        stopped = false
        showButton("Stop") { stop() }
        output.text = text
        worker.execute {
            guarded { generate(text) }
            runOnUiThread { showButton("Generate") { begin() } }
        }
    }

    /** A cancel before the text has begun has no effect: the listener looks at the flag. */
    private fun stop() {
        stopped = true
        conversation?.cancel()
    }

    /** The bundle that lies beside the app, else the one that is downloaded at the first start. */
    private fun prepare() {
        val delivered = File(getExternalFilesDir(null), "bundle")
        val folder = if (File(delivered, "helium.json").exists()) delivered else downloaded(delivered)
        val options = modelOptions {
            contextLength(2048)
            memoryLimit(ModelOptions.MEMORY_AVAILABLE)
        }
        val plan = HeliumModel.planMemory(folder.path, options)
        show("opening: ${megabytes(plan.total)} needed, ${megabytes(plan.available)} available")
        val opened = HeliumModel.open(folder.path, options)
        model = opened
        conversation = opened.openConversation(ConversationOptions(0, ConversationOptions.Overflow.SLIDE))
        val info = opened.info()
        show("${info.recipe}, ${info.threads} threads, opened in " + "%.1f s".format(info.loadSeconds))
    }

    private fun downloaded(delivered: File): File {
        val folder = File(filesDir, "bundle")
        val download = BundleDownload(BuildConfig.BUNDLE_URL, folder) { done, of ->
            show("downloading: ${megabytes(done)} of ${megabytes(of)}")
        }
        if (!download.isComplete && BuildConfig.BUNDLE_URL.isEmpty()) {
            throw IOException("no bundle: expected $delivered; push it with adb, or build with -Phelium.bundleUrl=URL")
        }
        download.run()
        return folder
    }

    private fun generate(text: String) {
        var tokens = 0
        var begun = 0L
        val request = generationRequest {
            prompt(text)
            temperature(0.7)
            topP(0.9)
        }
        val listener = object : TextListener {
            override fun onPrefill(done: Long, of: Long): Boolean {
                show("reading: $done of $of tokens")
                return !stopped
            }

            override fun onToken(id: Int): Boolean {
                val now = System.nanoTime()
                if (tokens++ == 0) begun = now else show("%.1f tokens/s".format((tokens - 1) * 1e9 / (now - begun)))
                return !stopped
            }

            override fun onText(text: String): Boolean {
                runOnUiThread { output.append(text) }
                return !stopped
            }
        }
        val result = conversation!!.generate(request, listener)
        val memory = model!!.info()
        val rate = "%.1f tokens/s, first after %.2f s".format(result.decodeTokensPerSecond, result.firstTokenSeconds)
        show(
            "${result.newTokens} tokens, $rate; ${result.finish}\n" +
                "memory: peak ${megabytes(memory.peakMemory)}, " +
                "weights ${megabytes(memory.weightsResident)} of ${megabytes(memory.weightsBytes)}"
        )
    }

    /** Whether it went well; if not, its error is shown. */
    private fun guarded(work: () -> Unit): Boolean {
        try {
            work()
            return true
        } catch (error: HeliumException) {
            show("${error.status}: ${error.message}")
        } catch (error: IOException) {
            show(error.message.orEmpty())
        }
        return false
    }

    private fun show(text: String) = runOnUiThread { status.text = text }

    private fun megabytes(bytes: Long) = if (bytes < 0) "unknown" else "${bytes / 1_000_000} MB"
}
