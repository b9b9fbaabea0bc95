// Runs contenders (web_contenders.js) in one page of a headless Chromium, by turns. A JSON job on standard input, a
// JSON result on the last line of standard output. The job: `browser` (Chromium's path), `modules` (a node_modules with
// playwright-core and transformers.js), `package` (the built @helium-onnx/web), `bundles` (a folder), `contenders`,
// `prompts` (`short` and `long`, each with `text` and `ids`), `count` (tokens decoded), `rounds`, `loads`.
import { createReadStream, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { extname, join, normalize } from "node:path";
import { pathToFileURL } from "node:url";

const job = JSON.parse(readFileSync(0, "utf8"));
const require = createRequire(join(job.modules, "x"));
const { chromium } = (await import(pathToFileURL(require.resolve("playwright-core")))).default;

const ROOTS = { transformers: job.modules, ours: job.package, bundles: job.bundles, here: import.meta.dirname };
const TYPES = { ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };
// Threads are for isolated pages only, and so is a clock of 5 microseconds.
const HEADERS = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };
const server = createServer((request, response) => {
  const [, root, ...rest] = normalize(new URL(request.url, "http://page").pathname).split("/");
  if (root === "") return response.writeHead(200, { ...HEADERS, "Content-Type": "text/html" }).end("<!doctype html>");
  if (!(root in ROOTS)) return response.writeHead(404).end();
  const file = createReadStream(join(ROOTS[root], ...rest));
  file.on("error", () => response.writeHead(404).end());
  file.on("open", () => {
    response.writeHead(200, { ...HEADERS, "Content-Type": TYPES[extname(request.url)] ?? "application/octet-stream" });
    file.pipe(response);
  });
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));

const launch = () => chromium.launch({ executablePath: job.browser, args: ["--no-sandbox"] });

async function newPage(browser) {
  const page = await browser.newPage();
  page.on("pageerror", (error) => console.error(error));
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.evaluate(async () => void (globalThis.bench = await import("/here/web_contenders.js")));
  return page;
}

const load = (page, contender) => page.evaluate((contender) => bench.load(contender), contender);
const run = (page, name, prompt, count) =>
  page.evaluate(([name, prompt, count]) => bench.run(name, prompt, count), [name, prompt, count]);

/** A load in a browser that has run nothing yet, and what its page's process takes of memory, with one text. */
async function alone(contender) {
  const browser = await launch();
  try {
    const page = await newPage(browser);
    const { processInfo } = await (await browser.newBrowserCDPSession()).send("SystemInfo.getProcessInfo");
    const pages = processInfo.filter(({ type }) => type === "renderer").map(({ id }) => id);
    const bytes = (field) => {
      const status = pages.map((id) => readFileSync(`/proc/${id}/status`, "utf8"));
      return Math.max(...status.map((text) => 1024 * Number(new RegExp(`${field}:\\s+(\\d+) kB`).exec(text)[1])));
    };
    const before_bytes = bytes("VmRSS");
    const load_ms = await load(page, contender);
    await run(page, contender.name, job.prompts.short, job.count);
    return { load_ms, before_bytes, peak_bytes: bytes("VmHWM"), after_bytes: bytes("VmRSS") };
  } finally {
    await browser.close();
  }
}

try {
  const contenders = Object.fromEntries(job.contenders.map(({ name }) => [name, { alone: [], rounds: [] }]));
  const browser = await launch();
  const result = { browser: browser.version(), contenders };
  try {
    const page = await newPage(browser);
    for (const contender of job.contenders) await load(page, contender);
    const { short, long } = job.prompts;
    for (let round = -2; round < job.rounds; round++) {
      // two to warm up: WebAssembly is compiled again as it runs
      const order = round % 2 === 0 ? job.contenders : [...job.contenders].reverse(); // who begins changes
      const times = Object.fromEntries(order.map(({ name }) => [name, {}]));
      for (const { name } of order) times[name].short_first = await run(page, name, short, 1);
      for (const { name } of order) times[name].short_all = await run(page, name, short, job.count);
      for (const { name } of order) times[name].long_first = await run(page, name, long, 1);
      for (const { name } of order) if (round >= 0) contenders[name].rounds.push(times[name]);
    }
  } finally {
    await browser.close();
  }
  for (let round = 0; round < job.loads; round++) {
    for (const contender of job.contenders) contenders[contender.name].alone.push(await alone(contender));
  }
  console.log(JSON.stringify(result));
} finally {
  server.close();
}
