// Draws the PNG icons from public/icons/icon.svg, in Chromium (HELIUM_CHROMIUM, by default /usr/bin/chromium).
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const folder = new URL("../public/icons/", import.meta.url);
const svg = readFileSync(new URL("icon.svg", folder), "utf8");
// A system cuts a maskable icon to its own shape: no round corners, and the drawing within the inner 80 %.
const maskable = svg
  .replace('rx="112"', "")
  .replaceAll(/(<ellipse|<circle)/g, '<g transform="matrix(.8 0 0 .8 51 51)">$1');
const browser = await chromium.launch({
  executablePath: process.env.HELIUM_CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
for (const [name, drawing, size] of [
  ["icon-192.png", svg, 192],
  ["icon-512.png", svg, 512],
  ["icon-maskable-512.png", maskable.replaceAll(/(<(?:ellipse|circle)[^>]*\/>)/g, "$1</g>"), 512],
]) {
  const page = await browser.newPage({ viewport: { width: size, height: size } });
  await page.setContent(`<style>body{margin:0}svg{display:block}</style>${drawing}`);
  const path = new URL(name, folder).pathname;
  await page.screenshot({ path, omitBackground: true });
}
await browser.close();
