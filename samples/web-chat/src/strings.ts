/** The page's words in six languages, and how they get into the page. */
import { de } from "./strings/de.js";
import { en } from "./strings/en.js";
import { es } from "./strings/es.js";
import { fr } from "./strings/fr.js";
import { it } from "./strings/it.js";
import { pt } from "./strings/pt.js";

/** English says which there are; the other files are held to it by the compiler. */
export type Strings = { readonly [key in keyof typeof en]: string };
export type Language = "en" | "fr" | "de" | "it" | "es" | "pt";

export const STRINGS: Readonly<Record<Language, Strings>> = { en, fr, de, it, es, pt };
export const LANGUAGES = Object.keys(STRINGS) as Language[];

export function isLanguage(text: string | null): text is Language {
  return LANGUAGES.includes(text as Language);
}

/** Of the languages that the reader prefers, the first that there is. */
export function preferredLanguage(preferred: readonly string[]): Language {
  for (const tag of preferred) {
    const language = tag.toLowerCase().split("-")[0] ?? "";
    if (isLanguage(language)) return language;
  }
  return "en";
}

/** `text` with each `{name}` replaced. */
export function fill(text: string, values: Readonly<Record<string, string | number>>): string {
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

/** Writes the strings into all elements that name one: `data-text` into the element, `data-label` as its label. */
export function showStrings(root: ParentNode, strings: Strings): void {
  for (const element of root.querySelectorAll<HTMLElement>("[data-text]")) {
    element.textContent = strings[element.dataset["text"] as keyof Strings];
  }
  for (const element of root.querySelectorAll<HTMLElement>("[data-label]")) {
    const label = strings[element.dataset["label"] as keyof Strings];
    element.setAttribute("aria-label", label);
    if (element instanceof HTMLButtonElement) element.title = label;
  }
}

/** "31.1 MB" as the language writes it. */
export function megabytes(bytes: number, language: Language): string {
  return `${decimal(bytes / 1e6, bytes < 1e8 ? 1 : 0, language)}\u00a0MB`;
}

export function decimal(value: number, digits: number, language: Language): string {
  return new Intl.NumberFormat(language, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(
    value,
  );
}
