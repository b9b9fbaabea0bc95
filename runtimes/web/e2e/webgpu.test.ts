import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { serve, type TestServer } from "./server.js";
import { DIST, inCamelCase, launch } from "./setup.js";

const expected = inject("expected");
let server: TestServer;

beforeAll(async () => {
  server = await serve({ "/dist/": DIST, "/bundles/": inject("bundles") }, false);
});

afterAll(async () => {
  await server?.close();
});

/** Loads with `provider: "webgpu"` in a browser started with `args`; generates `limit` tokens at most of each. */
async function run(args: string[], names: string[], limit: number): Promise<{ info: Info; tokens: number[][] }> {
  const browser = await launch(args);
  try {
    const page = await browser.newPage();
    await page.goto(server.url);
    const requests = names.map((name) => {
      const { prompt, options } = expected[RECIPE]![name]!;
      return { prompt, options: { ...inCamelCase(options), maxNewTokens: limit } };
    });
    return await page.evaluate(
      async ({ recipe, requests }) => {
        const model = await web.load(`/bundles/${recipe}`, { provider: "webgpu" });
        const tokens = [];
        for (const { prompt, options } of requests) tokens.push((await model.generate(prompt, options)).tokenIds);
        const { provider, fallback, threads } = model.info;
        return { info: { provider, fallback, threads }, tokens };
      },
      { recipe: RECIPE, requests },
    );
  } finally {
    await browser.close();
  }
}

/** The first tokens that Python gives. */
function wanted(names: string[], limit: number): number[][] {
  return names.map((name) => expected[RECIPE]![name]!.token_ids.slice(0, limit));
}

const RECIPE = "cpu-fp32";
interface Info {
  provider: string;
  fallback: string | null;
  threads: number;
}

describe("provider webgpu", () => {
  const software = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

  // A software GPU takes a second for a token.
  it("gives Python's tokens on a (software) GPU", { timeout: 300_000 }, async () => {
    const names = ["chunked", "sampled"];
    expect(expected[RECIPE]!["chunked"]!.prompt_tokens).toBeGreaterThan(16);
    const { info, tokens } = await run(software, names, 8);
    expect(info).toEqual({ provider: "webgpu", fallback: null, threads: 1 });
    expect(tokens).toEqual(wanted(names, 8));
  });

  it("falls back to WebAssembly where there is no GPU, and says why", async () => {
    const { info, tokens } = await run(["--disable-gpu"], ["stopped"], 20);
    expect(info.provider).toBe("wasm");
    expect(info.fallback).toMatch(/the browser has (no WebGPU|WebGPU, but no GPU)/);
    expect(tokens).toEqual(wanted(["stopped"], 20));
  });
});
