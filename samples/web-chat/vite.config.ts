import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { defineConfig, type Plugin } from "vite";

// Threads of WebAssembly need both: a page of its own origin alone may share memory between workers.
const headers = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

/** ONNX Runtime's build for GPUs, 27 MB: fetched by who asks for WebGPU. */
const GPU_FILES = /^assets\/ort(\.webgpu|-wasm-simd-threaded\.asyncify)\b/;
const PUBLIC = fileURLToPath(new URL("public", import.meta.url));
const SERVICE_WORKER = fileURLToPath(new URL("src/service-worker.js", import.meta.url));

/** Writes sw.js: the service worker, told what there is to keep. */
function serviceWorker(): Plugin {
  return {
    name: "service-worker",
    apply: "build",
    enforce: "post",
    generateBundle(_, bundle) {
      const hash = createHash("sha256");
      const files = Object.keys(bundle).filter((name) => !GPU_FILES.test(name));
      for (const name of files) {
        const file = bundle[name]!;
        hash.update(name).update(file.type === "chunk" ? file.code : file.source);
      }
      for (const entry of readdirSync(PUBLIC, { recursive: true, withFileTypes: true })) {
        const path = join(entry.parentPath, entry.name);
        const name = relative(PUBLIC, path).replaceAll("\\", "/");
        if (!entry.isFile() || name.startsWith("model/")) continue;
        files.push(name);
        hash.update(name).update(readFileSync(path));
      }
      const code = readFileSync(SERVICE_WORKER, "utf8");
      const constants = { VERSION: hash.update(code).digest("hex").slice(0, 16), FILES: files.sort() };
      const lines = Object.entries(constants).map(([name, value]) => `const ${name} = ${JSON.stringify(value)};`);
      this.emitFile({ type: "asset", fileName: "sw.js", source: [...lines, code].join("\n") });
    },
  };
}

export default defineConfig({
  base: "./", // works in any folder of any server
  appType: "mpa", // a missing file is 404, not this page again
  build: { target: "es2022", assetsInlineLimit: 0, modulePreload: false },
  worker: { format: "es" },
  optimizeDeps: { exclude: ["@helium-onnx/web"] }, // it names its own files relative to itself
  server: { headers },
  preview: { headers },
  plugins: [serviceWorker()],
});
