import { copyFileSync, mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));
/** ONNX Runtime's files, which are served beside the package's own, and what its source calls their addresses. */
const RUNTIME = {
  RUNTIME_SCRIPT: "ort-wasm-simd-threaded.mjs",
  RUNTIME_BINARY: "ort-wasm-simd-threaded.wasm",
  GPU_LIBRARY: "ort.webgpu.min.mjs",
  GPU_SCRIPT: "ort-wasm-simd-threaded.asyncify.mjs",
  GPU_BINARY: "ort-wasm-simd-threaded.asyncify.wasm",
};

export default defineConfig({
  build: {
    target: "es2022",
    minify: false,
    lib: { entry: { index: here("src/index.ts"), worker: here("src/worker.ts") }, formats: ["es"] },
    rollupOptions: { output: { chunkFileNames: "[name].js" } },
  },
  plugins: [
    {
      // Written as they are here, these expressions would be resolved by this build; the page's own shall find them.
      name: "literal-urls",
      renderChunk(code) {
        const worker = `new Worker(new URL("./worker.js", import.meta.url), { type: "module" })`;
        let literal = code.replaceAll("createWorker()", worker);
        for (const [name, file] of Object.entries(RUNTIME)) {
          literal = literal.replaceAll(name, `new URL("./ort/${file}", import.meta.url).href`);
        }
        return literal;
      },
    },
    {
      name: "copy-runtime",
      closeBundle() {
        mkdirSync(here("dist/ort"), { recursive: true });
        for (const name of Object.values(RUNTIME)) {
          copyFileSync(here(`node_modules/onnxruntime-web/dist/${name}`), here(`dist/ort/${name}`));
        }
      },
    },
  ],
});
