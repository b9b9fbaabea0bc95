import type { Browser } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { TestServer } from "../../../runtimes/web/e2e/server.js";
import { finished, launch, opened, ready, server, set, shown, written } from "./pages.js";

let browser: Browser;
let site: TestServer;

beforeAll(async () => {
  [browser, site] = [await launch(), await server()];
});

afterAll(async () => {
  await browser?.close();
  await site?.close();
});

const GREEDY = { temperature: "0", "max-tokens": "16" };

describe("writing", () => {
  it("continues a text, and tells the two apart", async () => {
    const page = await opened(browser, site.url);
    await ready(page);
    expect(await page.locator("#ready-text").textContent()).toMatch(
      /WebAssembly, \d+ threads?\) · \d+.*\sMB of memory/,
    );
    const seen = await written(page, "To insert a table in a text document,", GREEDY);
    expect(seen.prompt).toBe("To insert a table in a text document,");
    expect(seen.text).toMatch(/^ choose Insert - Table/); // as samples/helium-docs-7m/README.md has it
    expect(seen.status).toBe("Ended after 16 tokens, the limit in the settings.");
    expect(seen.figures).toMatch(/^16 tokens · [\d,]+\stokens\/s · first token after \d\.\d\d\ss$/);
    await page.locator("#write-on").click();
    await finished(page);
    const more = await shown(page);
    expect(more.prompt).toBe(seen.prompt + seen.text);
    await page.locator("#edit").click();
    expect(await page.locator("#prompt").inputValue()).toBe(more.prompt + more.text);
    expect(await page.evaluate(() => document.activeElement?.id)).toBe("prompt");
    expect(page.errors).toEqual([]);
  });

  it("shows the text while it comes, and stops by button and by Escape", async () => {
    const page = await opened(browser, site.url);
    await ready(page);
    await set(page, { "max-tokens": "1500", stop: "" });
    const lengths = async (): Promise<number> => (await shown(page)).text.length;
    for (const stop of [() => page.locator("#continue").click(), () => page.keyboard.press("Escape")]) {
      await page.locator("#prompt").fill("LibreOffice Help\n");
      await page.keyboard.press("Control+Enter");
      await expect.poll(lengths, { interval: 5 }).toBeGreaterThan(10);
      expect(await page.locator("#output").getAttribute("aria-busy")).toBe("true");
      expect(await page.locator("#continue").textContent()).toBe("Stop");
      const before = await lengths();
      await expect.poll(lengths, { interval: 5 }).toBeGreaterThan(before);
      await stop();
      await finished(page);
      expect((await shown(page)).status).toMatch(/You stopped here|The model ended the text/);
      expect(await page.locator("#output").getAttribute("aria-busy")).toBe("false");
      expect(await page.locator("#continue").textContent()).toBe("Continue");
    }
    expect(page.errors).toEqual([]);
  });

  it("follows the settings, and keeps them", async () => {
    const page = await opened(browser, site.url);
    await ready(page);
    const sampled = { temperature: "1.2", "top-p": "0.9", "max-tokens": "24" };
    const first = await written(page, "Pour ", { ...sampled, seed: "7" });
    expect(first.figures).toMatch(/seed 7$/);
    const other = await written(page, "Pour ", { seed: "8" });
    expect(other.text).not.toBe(first.text);
    await page.reload();
    await ready(page);
    expect(await page.locator("#temperature").inputValue()).toBe("1.2");
    expect((await written(page, "Pour ", { seed: "7" })).text).toBe(first.text);
    const stopped = await written(page, "LibreOffice Help\n", {
      temperature: "0",
      "max-tokens": "400",
      stop: "\\n\n. ",
    });
    expect(stopped.status).toMatch(/^Ended before “(\\n|\. )”\.$/);
    expect(stopped.text).not.toMatch(/\n|\. /);
    await page.locator("#max-tokens").fill("0");
    await page.locator("#continue").click();
    expect(await page.locator("#max-tokens").evaluate((e: HTMLInputElement) => e.matches(":invalid:focus"))).toBe(true);
    await page.locator("#reset").click();
    expect(await page.locator("#max-tokens").inputValue()).toBe("128");
    await set(page, { "max-tokens": "4000" });
    await page.locator("#continue").click();
    await page.locator("#text-problem").waitFor();
    expect(await page.locator("#text-problem").innerText()).toMatch(/^The text is too long\n[^]*2048 tokens together/);
    expect(page.errors).toEqual([]);
  });
});

describe("the page", () => {
  it("speaks six languages, and begins texts in each", async () => {
    const page = await opened(browser, site.url, { locale: "fr-CA" });
    expect(await page.locator("html").getAttribute("lang")).toBe("fr");
    const seen = new Set<string>();
    for (const language of ["en", "fr", "de", "it", "es", "pt"]) {
      await page.locator("#language").selectOption(language);
      seen.add((await page.locator("main").innerText()).split("\n")[0] + (await page.locator("footer").innerText()));
      await page.locator(`#starts button[lang=${language}]`).click();
      expect(await page.locator("#prompt").inputValue()).toMatch(/,$/);
      const empty = await page.evaluate(
        () => [...document.querySelectorAll<HTMLElement>("[data-text]")].filter((e) => !e.textContent?.trim()).length,
      );
      expect(empty).toBe(0);
    }
    expect(seen.size).toBe(6);
    await page.reload();
    expect(await page.locator("html").getAttribute("lang")).toBe("pt");
    await ready(page);
    expect(await page.locator("#ready-text").textContent()).toMatch(/Calcula no processador/);
    expect(page.errors).toEqual([]);
  });

  it("is light or dark as the system is, or as the reader wants", async () => {
    const page = await opened(browser, site.url, { colorScheme: "dark" });
    const paper = (): Promise<string> => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const dark = await paper();
    expect(await page.locator("#theme").getAttribute("aria-pressed")).toBe("true");
    await page.locator("#theme").click();
    const light = await paper();
    expect(light).not.toBe(dark);
    await page.reload();
    expect(await paper()).toBe(light);
  });

  it("names every control for a screen reader, in one order for the keyboard", async () => {
    const page = await opened(browser, site.url);
    await ready(page);
    const nameless = await page.evaluate(() =>
      [...document.querySelectorAll<HTMLInputElement>("button, select, textarea, input:not([hidden])")]
        .filter((e) => !e.labels?.length && !e.ariaLabel && !e.textContent?.trim())
        .map((e) => e.outerHTML),
    );
    expect(nameless).toEqual([]);
    const order: string[] = [];
    await page.locator("#language").focus();
    for (let i = 0; i < 10; i++) {
      order.push(await page.evaluate(() => document.activeElement?.id ?? ""));
      await page.keyboard.press("Tab");
    }
    expect(order.slice(0, 3)).toEqual(["language", "theme", "prompt"]);
    expect(order.at(-1)).toBe("continue"); // after the six starts
  });

  it("fits phones and desktops", async () => {
    const page = await opened(browser, site.url);
    await ready(page);
    await page.locator("#ready-text", { hasText: "works offline" }).waitFor();
    await written(page, "To insert a table in a text document,", { temperature: "0", "max-tokens": "96" });
    for (const [name, width, height] of [
      ["phone", 390, 844],
      ["desktop", 1280, 800],
    ] as const) {
      await page.setViewportSize({ width, height });
      await page.evaluate(
        (open) => ((document.getElementById("settings") as HTMLDetailsElement).open = open),
        name === "desktop",
      );
      for (const language of ["en", "de"]) {
        await page.locator("#language").selectOption(language);
        expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(width);
        for (const colorScheme of ["light", "dark"] as const) {
          await page.emulateMedia({ colorScheme });
          const folder = process.env["HELIUM_SCREENSHOTS"];
          if (folder)
            await page.screenshot({ path: `${folder}/${name}-${colorScheme}-${language}.png`, fullPage: true });
        }
      }
    }
  });
});
