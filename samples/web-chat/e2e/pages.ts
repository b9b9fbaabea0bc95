/** Browsers, servers and pages of the tests. */
import { fileURLToPath } from "node:url";
import { chromium, type Browser, type BrowserContextOptions, type Page } from "playwright-core";
import { inject } from "vitest";
import { serve, type TestServer } from "../../../runtimes/web/e2e/server.js";

export const DIST = fileURLToPath(new URL("../dist", import.meta.url));

export async function launch(args: string[] = []): Promise<Browser> {
  const executablePath = process.env["HELIUM_CHROMIUM"] ?? "/usr/bin/chromium";
  return await chromium.launch({ executablePath, args: ["--no-sandbox", ...args] });
}

/** The built page with the model beside it, under its own origin: caches of one test are not another's. */
export async function server(isolated = true, port = 0): Promise<TestServer> {
  return await serve({ "/model/": inject("model"), "/": DIST }, isolated, port);
}

/** The page in a fresh profile. What it throws fails the test that asks `errors`. */
export async function opened(
  browser: Browser,
  url: string,
  options: BrowserContextOptions = {},
): Promise<Page & { errors: Error[] }> {
  const context = await browser.newContext({ locale: "en-GB", ...options });
  const page = Object.assign(await context.newPage(), { errors: [] as Error[] });
  page.on("pageerror", (error) => page.errors.push(error));
  await page.goto(url);
  return page;
}

export async function ready(page: Page): Promise<void> {
  await page.locator("#model-ready").waitFor({ timeout: 30_000 });
}

/** Writes with the given settings (ids of the form's fields) and gives what there is at the end. */
export async function written(page: Page, prompt: string, settings: Record<string, string> = {}): Promise<Written> {
  await set(page, settings);
  await page.locator("#prompt").fill(prompt);
  await page.locator("#continue").click();
  await finished(page);
  return await shown(page);
}

export async function set(page: Page, settings: Record<string, string>): Promise<void> {
  await page.evaluate(() => ((document.getElementById("settings") as HTMLDetailsElement).open = true));
  for (const [id, value] of Object.entries(settings)) await page.locator(`#${id}`).fill(value);
}

export async function finished(page: Page): Promise<void> {
  await page.locator("#after").waitFor({ timeout: 30_000 });
}

export interface Written {
  prompt: string;
  text: string;
  status: string;
  figures: string;
}

export async function shown(page: Page): Promise<Written> {
  const text = async (id: string): Promise<string> => (await page.locator(`#${id}`).textContent()) ?? "";
  return {
    prompt: await text("output-prompt"),
    text: await text("output-text"),
    status: await text("status"),
    figures: await text("figures"),
  };
}
