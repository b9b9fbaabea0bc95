import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from "vitest";
import { damaged, type TestServer } from "../../../runtimes/web/e2e/server.js";
import { canonicalWithout } from "../../../runtimes/web/src/canonical-json.js";
import { sha256 } from "../../../runtimes/web/src/sha256.js";
import { launch, opened, ready, server, written } from "./pages.js";

const WEIGHTS = "/model/onnx/model.onnx_data";
const MODEL = inject("model");
let browser: Browser;
let site: TestServer;

beforeAll(async () => {
  [browser, site] = [await launch(), await server()];
});

afterAll(async () => {
  await browser?.close();
  await site?.close();
});

beforeEach(() => {
  site.replaced.clear();
  site.unreachable.clear();
});

/** Title and text of what went wrong with the model. */
async function problem(page: Page): Promise<string> {
  await page.locator("#model-problem").waitFor({ timeout: 30_000 });
  const text = async (id: string): Promise<string> => (await page.locator(`#model-problem-${id}`).textContent()) ?? "";
  return `${await text("title")}: ${await text("text")}`;
}

async function notices(page: Page): Promise<string> {
  return await page.locator("#model-notices").innerText();
}

async function picture(page: Page, name: string): Promise<void> {
  const folder = process.env["HELIUM_SCREENSHOTS"];
  if (folder) await page.screenshot({ path: `${folder}/${name}.png` });
}

describe("without a network", () => {
  it("the page and the model are there once they were loaded", async () => {
    const own = await server();
    const page = await opened(browser, own.url);
    await ready(page);
    await page.locator("#ready-text", { hasText: "works offline" }).waitFor();
    const settings = { temperature: "0", "max-tokens": "16" };
    const online = await written(page, "Pour insérer un tableau,", settings);
    await own.close();
    await page.reload();
    await ready(page);
    const offline = await written(page, "Pour insérer un tableau,", settings);
    expect(offline.text).toBe(online.text);
    expect(await page.locator("#ready-text").textContent()).toMatch(/threads?\).*works offline/);
    expect(await page.evaluate(() => crossOriginIsolated)).toBe(true); // the service worker keeps the headers
    expect(page.errors).toEqual([]);
  });

  it("says so where the model is not there yet, and takes it later", async () => {
    site.unreachable.add("/model/");
    const page = await opened(browser, site.url);
    expect(await problem(page)).toMatch(/^No connection: The model is not on this device yet/);
    site.unreachable.clear();
    await page.locator("#load").click();
    await ready(page);
  });
});

describe("downloads", () => {
  it("that are damaged are refused, and can be repeated", async () => {
    site.replaced.set(WEIGHTS, damaged(join(MODEL, "onnx/model.onnx_data")));
    const page = await opened(browser, site.url, { viewport: { width: 390, height: 844 } });
    expect(await problem(page)).toMatch(/^The model arrived damaged: /);
    expect(await page.locator("#model-problem-detail").textContent()).toMatch(/found: +SHA-256 [0-9a-f]{64}/);
    expect(await page.locator("#continue").isDisabled()).toBe(true);
    await picture(page, "damaged");
    site.replaced.clear();
    await page.locator("#load").click();
    await ready(page);
  });

  it("show their bytes, and can be cancelled", async () => {
    const page = await opened(browser, "about:blank", { viewport: { width: 390, height: 844 } });
    let goOn!: () => void;
    site.delays.set(WEIGHTS, new Promise<void>((resolve) => (goOn = resolve)));
    try {
      await page.goto(site.url);
      await page.locator("#loading-text", { hasText: /[\d.]+\sMB of [\d.]+\sMB/ }).waitFor();
      await picture(page, "loading");
      await page.locator("#cancel").click();
      expect(await problem(page)).toMatch(/^Loading was cancelled/);
    } finally {
      goOn();
      site.delays.clear();
    }
    await page.locator("#load").click();
    await ready(page);
  });

  it("run where the browser has no room to keep them, which it says", async () => {
    const page = await opened(browser, "about:blank");
    const client = await page.context().newCDPSession(page);
    await client.send("Storage.overrideQuotaForOrigin", { origin: new URL(site.url).origin, quotaSize: 5e6 });
    await page.goto(site.url);
    await ready(page);
    expect(await notices(page)).toMatch(/no room left to keep the model/);
    expect((await written(page, "Pour", { "max-tokens": "4" })).text).not.toBe("");
  });
});

describe("no model", () => {
  it("at the address: says which, and takes a folder instead", async () => {
    site.replaced.set("/model/helium.json", null);
    const page = await opened(browser, site.url);
    expect(await problem(page)).toBe(
      `There is no model at this address: ${site.url}/model/ holds no helium-onnx bundle. ` +
        "Put one there, or choose the folder of one on this device.",
    );
    const choose = async (folder: string): Promise<void> => {
      await page.locator("#folder").setInputFiles(folder);
    };
    await choose(join(MODEL, "onnx"));
    await expect.poll(() => problem(page)).toMatch(/^This folder is no whole model: Choose the folder that holds/);
    await choose(MODEL);
    await ready(page);
    expect((await written(page, "Pour", { "max-tokens": "4" })).text).not.toBe("");
    expect(page.errors).toEqual([]);
  });

  it("at what is no address: says so", async () => {
    const page = await opened(browser, `${site.url}/?model=http://%5B`);
    expect(await problem(page)).toMatch(/^There is no model at this address: http:\/\/\[ holds no/);
  });

  it("is fetched before the reader asks for it, where data are to be saved", async () => {
    const page = await opened(browser, "about:blank");
    await page.addInitScript(() => Object.defineProperty(navigator, "connection", { value: { saveData: true } }));
    site.requests.length = 0;
    await page.goto(site.url);
    expect(await notices(page)).toMatch(/^Your device asks to save data/);
    expect(site.requests.some((path) => path.startsWith("/model/"))).toBe(false);
    await page.locator("#load").click();
    await ready(page);
  });

  it("that fits the memory: says so before the download", async () => {
    const manifest = JSON.parse(readFileSync(join(MODEL, "helium.json"), "utf8"));
    manifest.files.find((file: { path: string }) => file.path === "onnx/model.onnx_data").size = 5e9;
    const canonical = canonicalWithout(JSON.stringify(manifest), "manifest_sha256");
    manifest.manifest_sha256 = await sha256(new TextEncoder().encode(canonical));
    site.replaced.set("/model/helium.json", Buffer.from(JSON.stringify(manifest)));
    site.requests.length = 0;
    expect(await problem(await opened(browser, site.url))).toMatch(/^Too little memory: /);
    expect(site.requests).not.toContain(WEIGHTS);
  });
});

describe("a browser without", () => {
  it("shared memory runs one thread, and says why", async () => {
    const plain = await server(false);
    try {
      const page = await opened(browser, plain.url, { viewport: { width: 390, height: 844 } });
      await ready(page);
      expect(await page.locator("#ready-text").textContent()).toMatch(/WebAssembly, 1 thread\)/);
      expect(await notices(page)).toMatch(/^Only 1 thread: .*SharedArrayBuffer/);
      await picture(page, "one-thread");
      expect((await written(page, "Pour", { "max-tokens": "4" })).text).not.toBe("");
    } finally {
      await plain.close();
    }
  });

  it("WebGPU runs on the processor, and says so", async () => {
    const page = await opened(browser, site.url);
    await ready(page);
    await page.evaluate(() => ((document.getElementById("settings") as HTMLDetailsElement).open = true));
    await page.locator("#provider").selectOption("webgpu");
    await page.locator("#model-notices li").waitFor({ timeout: 30_000 });
    expect(await notices(page)).toMatch(/runs on the processor/);
    expect(await page.locator("#ready-text").textContent()).toMatch(/WebAssembly/);
  });
});

it("was built with all that it needs offline, and nothing larger", () => {
  const worker = readFileSync(new URL("../dist/sw.js", import.meta.url), "utf8");
  const files: string[] = JSON.parse(/^const FILES = (.*);$/m.exec(worker)![1]!);
  expect(files.map((name) => name.replace(/-[\w-]{8}(?=\.\w+$)/, "")).sort()).toEqual([
    "assets/index.css",
    "assets/index.js",
    "assets/ort-wasm-simd-threaded.mjs",
    "assets/ort-wasm-simd-threaded.wasm",
    "assets/worker.js",
    "icons/icon-192.png",
    "icons/icon-512.png",
    "icons/icon-maskable-512.png",
    "icons/icon.svg",
    "index.html",
    "manifest.webmanifest",
  ]);
});
