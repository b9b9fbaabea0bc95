/** Light or dark: the system's choice until the button was used, and the button's from then on. */
import { byId, remember } from "./dom.js";

export function startTheme(): void {
  const root = document.documentElement;
  const button = byId<HTMLButtonElement>("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = (): boolean => (root.dataset["theme"] ? root.dataset["theme"] === "dark" : system.matches);
  const show = (): void => {
    button.setAttribute("aria-pressed", String(isDark()));
    const color = getComputedStyle(root).getPropertyValue("--page").trim();
    document.querySelector('meta[name="theme-color"]')!.setAttribute("content", color);
  };
  button.addEventListener("click", () => {
    root.dataset["theme"] = isDark() ? "light" : "dark";
    remember("theme", root.dataset["theme"]);
    show();
  });
  system.addEventListener("change", show);
  show();
}
