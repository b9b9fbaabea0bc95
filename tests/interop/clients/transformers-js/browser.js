// transformers.js in a headless browser (WASM) on a bundle. As client.js, but that the job also has `browser`, the path
// of Chromium, and may have `wasm`, the build of onnxruntime-web to take. The page gets everything from a server of this process on the loopback: nothing else is to be reached.
import { createReadStream, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { extname, join, normalize } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(process.cwd() + "/");
const { chromium } = (await import(pathToFileURL(require.resolve("playwright-core")))).default;
const job = JSON.parse(readFileSync(0, "utf8"));

const ROOTS = { modules: join(process.cwd(), "node_modules"), here: import.meta.dirname, models: job.model };
const TYPES = { ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };
const server = createServer((request, response) => {
  const [, root, ...rest] = normalize(new URL(request.url, "http://page").pathname).split("/");
  // SharedArrayBuffer, and with it threads, is for isolated pages only.
  const headers = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };
  if (root === "") return response.writeHead(200, { ...headers, "Content-Type": "text/html" }).end("<!doctype html>");
  const parts = root === "models" ? rest.slice(1) : rest; // without the name that the bundle has in the page
  if (!(root in ROOTS)) return response.writeHead(404).end();
  const file = createReadStream(join(ROOTS[root], ...parts));
  file.on("error", () => response.writeHead(404).end());
  file.on("open", () => {
    response.writeHead(200, { ...headers, "Content-Type": TYPES[extname(request.url)] ?? "application/octet-stream" });
    file.pipe(response);
  });
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const browser = await chromium.launch({ executablePath: job.browser, args: ["--no-sandbox"] });
try {
  const page = await browser.newPage();
  page.on("console", (message) => console.error(message.text()));
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  const results = await page.evaluate(async ({ options, requests, wasm }) => {
    const transformers = await import("/modules/@huggingface/transformers/dist/transformers.js");
    const { answer } = await import("/here/requests.js");
    transformers.env.allowRemoteModels = false;
    transformers.env.allowLocalModels = true;
    transformers.env.localModelPath = "/models/";
    transformers.env.useBrowserCache = false;
    transformers.env.backends.onnx.wasm.wasmPaths = wasm
      ? { wasm: `/modules/onnxruntime-web/dist/${wasm}.wasm`, mjs: `/modules/onnxruntime-web/dist/${wasm}.mjs` }
      : "/modules/onnxruntime-web/dist/";
    return await answer(transformers, "bundle", { device: "wasm", ...options }, requests);
  }, job);
  console.log(JSON.stringify(results));
} finally {
  await browser.close();
  server.close();
}
