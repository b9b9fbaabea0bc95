/** The settings' form: what a text is generated with, and what runs it. Kept between visits. */
import type { GenerationOptions } from "@helium-onnx/web";
import { byId, remember, remembered } from "./dom.js";
import { decimal, type Language } from "./strings.js";

export type Provider = "wasm" | "webgpu";

const FIELDS = ["max-tokens", "temperature", "top-p", "seed", "stop", "provider"] as const;
type Field = (typeof FIELDS)[number];
type Values = Record<Field, string>;

const DEFAULTS: Values = {
  "max-tokens": "128",
  temperature: "0.7",
  "top-p": "0.95",
  seed: "",
  stop: "",
  provider: "wasm",
};

export class Settings {
  readonly #form = byId<HTMLFormElement>("settings-form");
  #language: Language = "en";

  constructor(onProvider: () => void) {
    this.#write(this.#kept());
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    this.#form.addEventListener("input", () => {
      if (this.#form.checkValidity()) remember("settings", JSON.stringify(this.#values()));
      this.#showNumbers();
    });
    byId("provider").addEventListener("change", onProvider);
    byId("reset").addEventListener("click", () => {
      const before = this.provider;
      this.#write(DEFAULTS);
      remember("settings", JSON.stringify(DEFAULTS));
      if (before !== this.provider) onProvider();
    });
  }

  set language(language: Language) {
    this.#language = language;
    this.#showNumbers();
  }

  get provider(): Provider {
    return this.#values().provider as Provider;
  }

  /** What the form says; null where a field has a value that it cannot have, which the browser then shows. */
  options(): GenerationOptions | null {
    if (!this.#form.checkValidity()) {
      byId<HTMLDetailsElement>("settings").open = true; // a message needs its field to be seen
      this.#form.reportValidity();
      return null;
    }
    const values = this.#values();
    return {
      maxNewTokens: Number(values["max-tokens"]),
      temperature: Number(values.temperature),
      topP: Number(values["top-p"]),
      seed: values.seed === "" ? null : BigInt(values.seed),
      stop: values.stop
        .split("\n")
        .filter((line) => line !== "")
        .map((line) => line.replaceAll("\\n", "\n")),
    };
  }

  #values(): Values {
    return Object.fromEntries(FIELDS.map((name) => [name, field(name).value])) as Values;
  }

  #write(values: Values): void {
    for (const name of FIELDS) field(name).value = values[name];
    this.#showNumbers();
  }

  #kept(): Values {
    try {
      const kept = JSON.parse(remembered("settings") ?? "{}") as Partial<Record<string, unknown>>;
      const texts = FIELDS.map((name) => [name, typeof kept[name] === "string" ? kept[name] : DEFAULTS[name]]);
      return Object.fromEntries(texts) as Values;
    } catch {
      return DEFAULTS;
    }
  }

  #showNumbers(): void {
    for (const name of ["temperature", "top-p"] as const) {
      byId<HTMLOutputElement>(`${name}-value`).value = decimal(Number(field(name).value), 2, this.#language);
    }
  }
}

function field(name: Field): HTMLInputElement {
  return byId<HTMLInputElement>(name);
}
