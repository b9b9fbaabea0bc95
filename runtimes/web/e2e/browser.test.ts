import { statSync } from "node:fs";
import { join } from "node:path";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from "vitest";
import type * as Web from "../src/index.js";
import { damaged, serve, type TestServer } from "./server.js";
import { DIST, inCamelCase, launch, type Expected } from "./setup.js";

declare global {
  // In the page that the server gives.
  var web: typeof Web;
}

const expected = inject("expected");
const BUNDLES = inject("bundles");
let browser: Browser;
let isolated: TestServer;
let plain: TestServer;

beforeAll(async () => {
  browser = await launch();
  const roots = { "/dist/": DIST, "/bundles/": BUNDLES };
  [isolated, plain] = [await serve(roots, true), await serve(roots, false)];
});

afterAll(async () => {
  await browser?.close();
  await Promise.all([isolated?.close(), plain?.close()]);
});

beforeEach(() => {
  for (const server of [isolated, plain]) {
    server.requests.length = 0;
    server.replaced.clear();
    server.unreachable.clear();
  }
});

/** A page of a fresh profile (its cache is empty) in which the package is loaded as `web`. */
async function opened(server: TestServer): Promise<Page> {
  const page = await (await browser.newContext()).newPage();
  await page.goto(server.url);
  return page;
}

/** Loads a bundle and generates each of the texts; bigints do not cross, so seeds come as text. */
async function generated(
  page: Page,
  recipe: string,
  cases: Expected[],
  options: Web.LoadOptions = {},
): Promise<{ info: Web.ModelInfo; memory: Web.Memory; results: Generated[] }> {
  const requests = cases.map(({ prompt, options }) => ({ prompt, options: inCamelCase(options) }));
  return await page.evaluate(
    async ({ recipe, requests, options }) => {
      const model = await web.load(`/bundles/${recipe}`, options);
      const results = [];
      for (const { prompt, options } of requests) {
        const stream = model.stream(prompt, options);
        const pieces: string[] = [];
        for await (const piece of stream) pieces.push(piece);
        const { seed, ...result } = await stream.result;
        results.push({ ...result, pieces, seed: seed === null ? null : String(seed) });
      }
      const { info, memory } = model;
      model.close();
      return { info, memory, results };
    },
    { recipe, requests, options },
  );
}
type Generated = Omit<Web.GenerationResult, "seed"> & { pieces: string[]; seed: string | null };

function hold(results: Generated[], cases: Expected[]): void {
  for (const [index, { token_ids, text, finish_reason, stop }] of cases.entries()) {
    const result = results[index]!;
    expect(result.tokenIds).toEqual(token_ids);
    expect(result.text).toBe(text);
    expect(result.pieces.join("")).toBe(text);
    expect(result.finishReason).toBe(finish_reason);
    expect(result.stop).toBe(stop);
  }
}

describe("a bundle in the browser", () => {
  it.each(["cpu-fp32", "cpu-int4", "cpu-int8", "portable-fp32"])(
    "gives Python's tokens on one thread: %s",
    async (recipe) => {
      const cases = Object.values(expected[recipe]!);
      const { info, results } = await generated(await opened(plain), recipe, cases);
      expect(info).toMatchObject({ provider: "wasm", fallback: null, threads: 1, recipe, cache: "stored" });
      expect(info.expanded).toBe(recipe.startsWith("cpu-int"));
      expect(info.threadsReason).toMatch(/^1 thread: .*Cross-Origin-Embedder-Policy/);
      hold(results, cases);
    },
  );

  it("gives the same tokens from weights that stay quantized, in less memory", async () => {
    const cases = [expected["cpu-int4"]!["stopped"]!, expected["cpu-int4"]!["sampled"]!];
    const page = await opened(plain);
    const [expanded, asStored] = [
      await generated(page, "cpu-int4", cases),
      await generated(page, "cpu-int4", cases, { expandWeights: false }),
    ];
    expect([expanded.info.expanded, asStored.info.expanded]).toEqual([true, false]);
    hold(asStored.results, cases);
    expect(asStored.memory.heapBytes).toBeLessThan(expanded.memory.heapBytes! - 10e6);
  });

  it("gives Python's tokens on several threads, which it counts", async () => {
    const cases = Object.values(expected["cpu-fp32"]!);
    const { info, memory, results } = await generated(await opened(isolated), "cpu-fp32", cases, { threads: 2 });
    expect(info).toMatchObject({ threads: 2, threadsReason: null });
    hold(results, cases);
    expect(memory.weightsBytes).toBe(statSync(join(BUNDLES, "cpu-fp32/onnx/model.onnx_data")).size);
    expect(memory.cacheBytes).toBe(6 * 2 * 2 * 64 * 4 * 2048); // layers, K and V, heads, sizes, bytes, context
    expect(memory.heapBytes).toBeGreaterThan(memory.weightsBytes + memory.cacheBytes);
    for (const { statistics } of results) {
      expect(statistics.timeToFirstTokenSeconds).toBeGreaterThan(0);
      expect(statistics.decodeTokensPerSecond).toBeGreaterThan(1);
    }
  });

  it("speaks as soon as a token is there, while the page stays free", async () => {
    const page = await opened(plain);
    const seen = await page.evaluate(async () => {
      const model = await web.load("/bundles/cpu-fp32");
      let frames = 0;
      const count = (): void => void (frames++, requestAnimationFrame(count));
      const ticker = setInterval(() => frames++, 5);
      count();
      const stream = model.stream("Pour insérer un tableau", { maxNewTokens: 100, ignoreEos: true });
      await stream.next();
      const atFirst = frames;
      let pieces = 1;
      for await (const piece of stream) pieces += piece.length > 0 ? 1 : 0;
      clearInterval(ticker);
      return { pieces, between: frames - atFirst };
    });
    expect(seen.pieces).toBeGreaterThan(50);
    expect(seen.between).toBeGreaterThan(20);
  });
});

describe("ending early", () => {
  it.each(["signal", "break"])("ends by %s as interrupted, and goes on with the next request", async (way) => {
    const page = await opened(plain);
    const wanted = expected["cpu-fp32"]!["stopped"]!;
    const seen = await page.evaluate(
      async ({ way, prompt, options }) => {
        const model = await web.load("/bundles/cpu-fp32");
        const abort = new AbortController();
        const stream = model.stream("Pour", { maxNewTokens: 1000, ignoreEos: true, signal: abort.signal });
        let pieces = 0;
        for await (const _ of stream) {
          if (++pieces < 5) continue;
          if (way === "break") break;
          abort.abort();
        }
        const { finishReason, tokenIds } = await stream.result;
        const next = await model.generate(prompt, options);
        return { finishReason, count: tokenIds.length, next: next.tokenIds };
      },
      { way, prompt: wanted.prompt, options: inCamelCase(wanted.options) },
    );
    expect(seen.finishReason).toBe("interrupted");
    expect(seen.count).toBeGreaterThanOrEqual(5);
    expect(seen.count).toBeLessThan(500);
    expect(seen.next).toEqual(wanted.token_ids);
  });

  it("ends before the first token where the signal was aborted already", async () => {
    const result = await (
      await opened(plain)
    ).evaluate(async () => {
      const model = await web.load("/bundles/cpu-fp32");
      const { tokenIds, finishReason } = await model.generate("Pour", { signal: AbortSignal.abort() });
      return { tokenIds, finishReason };
    });
    expect(result).toEqual({ tokenIds: [], finishReason: "interrupted" });
  });

  it("stops a load, with the signal's reason", async () => {
    const name = await (
      await opened(plain)
    ).evaluate(async () => {
      const abort = new AbortController();
      const loading = web.load("/bundles/cpu-fp32", { signal: abort.signal, onProgress: () => abort.abort() });
      return await loading.then(String, (error: Error) => error.name);
    });
    expect(name).toBe("AbortError");
  });

  it("refuses requests of a closed model", async () => {
    const message = await (
      await opened(plain)
    ).evaluate(async () => {
      const model = await web.load("/bundles/cpu-fp32");
      const running = model.generate("Pour", { maxNewTokens: 1000 });
      model.close();
      const first = await running.then(String, (error: Error) => error.message);
      return first + (await model.generate("a").then(String, (error: Error) => error.message));
    });
    expect(message.match(/has been closed/g)).toHaveLength(2);
  });
});

/** What loading says, as a page would show it. */
async function loadError(page: Page, folder: string, options: Web.LoadOptions = {}): Promise<string> {
  return await page.evaluate(
    async ({ folder, options }) => await web.load(folder, options).then(String, (error: Error) => `${error}`),
    { folder, options },
  );
}

describe("downloads", () => {
  const weights = "/bundles/cpu-fp32/onnx/model.onnx_data";

  it("report their bytes, and need no network the second time", async () => {
    const page = await opened(plain);
    const load = async (): Promise<{ steps: string[]; last: number[]; cache: string }> =>
      await page.evaluate(async () => {
        const all: Web.LoadProgress[] = [];
        const model = await web.load("/bundles/cpu-fp32", { onProgress: (progress) => void all.push(progress) });
        model.close();
        const bytes = all.map((progress) => progress.loadedBytes);
        if (bytes.some((value, i) => i > 0 && value < bytes[i - 1]!)) throw new Error("progress went back");
        const end = all.at(-1)!;
        return {
          steps: [...new Set(all.map((p) => p.step))],
          last: [end.loadedBytes, end.totalBytes],
          cache: model.info.cache,
        };
      });
    const sizes = ["tokenizer.json", "onnx/prefill.onnx", "onnx/model.onnx_data"].map(
      (name) => statSync(join(BUNDLES, "cpu-fp32", name)).size,
    );
    const total = sizes.reduce((a, b) => a + b);
    expect(await load()).toEqual({ steps: ["download", "start"], last: [total, total], cache: "stored" });
    plain.requests.length = 0;
    expect(await load()).toEqual({ steps: ["cache", "start"], last: [total, total], cache: "hit" });
    expect(plain.requests.filter((path) => path.startsWith("/bundles"))).toEqual(["/bundles/cpu-fp32/helium.json"]);
  });

  it("are not needed without a network, once they were kept", async () => {
    const page = await opened(plain);
    plain.unreachable.add("/bundles/");
    expect(await loadError(page, "/bundles/cpu-fp32")).toMatch(/^DownloadError: [^]*no answer/);
    plain.unreachable.clear();
    await generated(page, "cpu-fp32", []);
    plain.unreachable.add("/bundles/");
    const wanted = expected["cpu-fp32"]!["stopped"]!;
    const { info, results } = await generated(page, "cpu-fp32", [wanted]);
    expect(info.cache).toBe("hit");
    hold(results, [wanted]);
  });

  it("that are damaged are an error, and are not kept", async () => {
    const page = await opened(plain);
    plain.replaced.set(weights, damaged(join(BUNDLES, "cpu-fp32/onnx/model.onnx_data")));
    const message = await loadError(page, "/bundles/cpu-fp32");
    expect(message).toMatch(/^IntegrityError: .*model\.onnx_data is damaged\n {2}found: {4}SHA-256 [0-9a-f]{64}\n/);
    expect(message).toMatch(/remedy: {3}load it again/);
    plain.replaced.clear();
    const wanted = expected["cpu-fp32"]!["stopped"]!;
    const { results } = await generated(page, "cpu-fp32", [wanted]);
    hold(results, [wanted]);
    expect(plain.requests.filter((path) => path === weights)).toHaveLength(2);
  });

  it("that the browser's disk damaged, or that are of an earlier bundle, are replaced", async () => {
    const page = await opened(plain);
    await generated(page, "cpu-fp32", []);
    const changed = await page.evaluate(async () => {
      const cache = await caches.open("helium-onnx");
      const key = (await cache.keys()).find((request) => request.url.includes("model.onnx_data"))!;
      await cache.put(key, new Response("rotten"));
      await cache.put(key.url.replace(/[^=]*$/, "earlier"), new Response("old"));
      return key.url;
    });
    expect(changed).toMatch(/\?sha256=[0-9a-f]{64}$/);
    const { info } = await generated(page, "cpu-fp32", []);
    expect(info.cache).toBe("stored");
    expect(plain.requests.filter((path) => path === weights)).toHaveLength(2);
    const kept = await page.evaluate(async () =>
      (await (await caches.open("helium-onnx")).keys()).map(({ url }) => url),
    );
    expect(kept.filter((url) => url.includes("model.onnx_data"))).toEqual([changed]);
  });

  it.each([
    ["a missing folder", "/bundles/nothing", /^DownloadError: .*helium\.json cannot be fetched\n.*HTTP status 404/],
    ["no server", "http://127.0.0.1:9/", /^DownloadError: .*helium\.json cannot be fetched[^]*CORS/],
    ["a page in its place", "/page", /^IntegrityError: .*helium\.json is not JSON/],
  ])("of %s are an error", async (_, folder, message) => {
    plain.replaced.set("/page/helium.json", Buffer.from("<!doctype html>"));
    expect(await loadError(await opened(plain), folder)).toMatch(message);
  });

  it("that are too short, or of a changed manifest, are an error", async () => {
    const page = await opened(plain);
    plain.replaced.set(weights, Buffer.from("short"));
    expect(await loadError(page, "/bundles/cpu-fp32")).toMatch(/damaged\n {2}found: {4}5 bytes\n {2}expected: \d+/);
    plain.replaced.set("/bundles/cpu-fp32/helium.json", damaged(join(BUNDLES, "cpu-fp32/helium.json")));
    expect(await loadError(page, "/bundles/cpu-fp32")).toMatch(
      /^IntegrityError: .*helium\.json (was changed|is not JSON)/,
    );
  });

  it("are no bundle where the user chose another folder", async () => {
    const page = await opened(plain);
    await page.evaluate(() => {
      document.body.innerHTML = '<input type="file" webkitdirectory>';
    });
    await page.setInputFiles("input", join(BUNDLES, "cpu-fp32/onnx"));
    const message = await page.evaluate(async () => {
      const files = document.querySelector("input")!.files!;
      return await web.load(files).then(String, (error: Error) => `${error}`);
    });
    expect(message).toMatch(/^IntegrityError: The chosen files are no whole bundle\n.*no helium\.json among \d+ files/);
  });

  it("are read from files that the user chose", async () => {
    const page = await opened(plain);
    await page.evaluate(() => {
      document.body.innerHTML = '<input type="file" webkitdirectory>';
    });
    await page.setInputFiles("input", join(BUNDLES, "cpu-fp32"));
    const wanted = expected["cpu-fp32"]!["stopped"]!;
    const tokens = await page.evaluate(
      async ({ prompt, options }) => {
        const model = await web.load(document.querySelector("input")!.files!);
        return (await model.generate(prompt, options)).tokenIds;
      },
      { prompt: wanted.prompt, options: inCamelCase(wanted.options) },
    );
    expect(tokens).toEqual(wanted.token_ids);
  });
});

describe("several requests", () => {
  it("are served in their order", async () => {
    const cases = [expected["cpu-fp32"]!["stopped"]!, expected["cpu-fp32"]!["sampled"]!];
    const tokens = await (
      await opened(plain)
    ).evaluate(
      async (requests) => {
        const model = await web.load("/bundles/cpu-fp32");
        const results = await Promise.all(requests.map(({ prompt, options }) => model.generate(prompt, options)));
        return results.map((result) => result.tokenIds);
      },
      cases.map(({ prompt, options }) => ({ prompt, options: inCamelCase(options) })),
    );
    expect(tokens).toEqual(cases.map((one) => one.token_ids));
  });
});

describe("what cannot be served", () => {
  it.each([
    ["contextLength", { contextLength: 4096 }, /^UsageError: contextLength[^]*4096[^]*1 to 2048/],
    ["threads", { threads: 0 }, /^UsageError: threads/],
  ])("a load with a bad %s says so", async (_, options, message) => {
    expect(await loadError(await opened(plain), "/bundles/cpu-fp32", options)).toMatch(message);
  });

  it("a request says so, in its iteration and its result", async () => {
    const messages = await (
      await opened(plain)
    ).evaluate(async () => {
      const model = await web.load("/bundles/cpu-fp32", { contextLength: 64 });
      const all = [];
      for (const options of [{ temperature: -1 }, { maxNewTokens: 64 }, { stop: "" }]) {
        const stream = model.stream("Bonjour", options);
        all.push(await stream.next().then(String, (error: Error) => `${error}`));
        all.push(await stream.result.then(String, (error: Error) => `${error}`));
      }
      return all;
    });
    expect(messages[0]).toMatch(/^UsageError: temperature/);
    expect(messages[2]).toMatch(/^ContextOverflowError: [^]*a sum of at most 64/);
    expect(messages[4]).toMatch(/^UsageError: A stop string/);
    expect([messages[1], messages[3], messages[5]]).toEqual([messages[0], messages[2], messages[4]]);
  });
});
