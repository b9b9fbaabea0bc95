/** The text: the reader's beginning, the model's continuation as it comes, and what is known of it at its end. */
import type { GenerationResult, TextIterator } from "@helium-onnx/web";
import { byId } from "./dom.js";
import type { ModelPanel } from "./model-panel.js";
import { problemOf, showProblem, type Problem } from "./problems.js";
import type { Settings } from "./settings.js";
import { decimal, fill, type Language, type Strings } from "./strings.js";

type End = { result: GenerationResult } | { problem: Problem };

export class Writer {
  readonly #prompt = byId<HTMLTextAreaElement>("prompt");
  readonly #output = byId("output");
  readonly #button = byId<HTMLButtonElement>("continue");
  #abort: AbortController | null = null;
  /** Whether the first piece of the running text has come. */
  #begun = false;
  #end: End | null = null;
  #note: "copied" | "notCopied" | null = null;
  #strings!: Strings;
  #language!: Language;

  constructor(
    readonly panel: ModelPanel,
    readonly settings: Settings,
  ) {
    this.#button.addEventListener("click", () => (this.#abort ? this.stop() : void this.#write(this.#prompt.value)));
    byId("write-on").addEventListener("click", () => void this.#write(this.#output.textContent ?? ""));
    byId("edit").addEventListener("click", () => this.#edit());
    byId("copy").addEventListener("click", () => void this.#copy());
    this.#prompt.addEventListener("input", () => this.show());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#abort) this.stop();
      const asked = event.key === "Enter" && (event.ctrlKey || event.metaKey);
      if (asked && !this.#abort && !this.#button.disabled) void this.#write(this.#prompt.value);
    });
  }

  speak(strings: Strings, language: Language): void {
    this.#strings = strings;
    this.#language = language;
    this.show();
  }

  /** Begins anew with this text. */
  begin(text: string): void {
    this.#prompt.value = text;
    this.#prompt.focus();
    this.show();
  }

  /** What there is stays. */
  stop(): void {
    this.#abort?.abort();
  }

  async #write(prompt: string): Promise<void> {
    const options = this.settings.options();
    const model = this.panel.model;
    if (options === null || model === null || this.#abort) return;
    this.#abort = new AbortController();
    this.#begun = false;
    this.#end = this.#note = null;
    byId("output-prompt").textContent = prompt;
    const text = byId("output-text");
    text.replaceChildren();
    // Read out at its end as one text, not word by word.
    this.#output.setAttribute("aria-busy", "true");
    this.show();
    byId("result").scrollIntoView({ block: "nearest" });
    try {
      const stream = model.stream(prompt, { ...options, signal: this.#abort.signal });
      await this.#receive(stream, text);
      this.#end = { result: await stream.result };
    } catch (error) {
      this.#end = { problem: problemOf(error, { limit: model.info.contextLength }) };
    }
    this.#abort = null;
    this.#output.setAttribute("aria-busy", "false");
    this.panel.refresh();
    this.show();
  }

  async #receive(stream: TextIterator, into: HTMLElement): Promise<void> {
    for await (const piece of stream) {
      const atEnd = this.#output.scrollHeight - this.#output.scrollTop - this.#output.clientHeight < 40;
      into.append(piece);
      if (atEnd) this.#output.scrollTop = this.#output.scrollHeight; // unless the reader has scrolled up
      if (!this.#begun) {
        this.#begun = true;
        this.show();
      }
    }
  }

  #edit(): void {
    this.begin(this.#output.textContent ?? "");
    this.#prompt.setSelectionRange(this.#prompt.value.length, this.#prompt.value.length);
    this.#prompt.scrollTop = this.#prompt.scrollHeight;
  }

  async #copy(): Promise<void> {
    try {
      await navigator.clipboard.writeText(this.#output.textContent ?? "");
      this.#note = "copied";
    } catch {
      this.#note = "notCopied";
    }
    this.show();
  }

  show(): void {
    const strings = this.#strings;
    const running = this.#abort !== null;
    const end = this.#end;
    const ready = this.panel.model !== null;
    this.#button.textContent = running ? strings.stop : strings.continueText;
    this.#button.classList.toggle("stop", running);
    this.#button.disabled = !running && (!ready || this.#prompt.value.trim() === "");
    byId("waiting").textContent = ready ? "" : this.panel.loading ? strings.waitForModel : strings.needsModel;
    byId("result").hidden = !running && end === null;
    byId("after").hidden = running || end === null;
    byId<HTMLButtonElement>("write-on").disabled = !ready;
    showProblem("text-problem", end !== null && "problem" in end ? end.problem : null, strings);
    const result = end !== null && "result" in end ? end.result : null;
    byId("figures").textContent = result === null ? "" : this.#figures(result);
    let status = "";
    if (this.#note) status = strings[this.#note];
    else if (running) status = this.#begun ? strings.writing : strings.reading;
    else if (result) status = this.#ending(result);
    if (byId("status").textContent !== status) byId("status").textContent = status;
  }

  #ending({ finishReason, tokenIds, stop }: GenerationResult): string {
    switch (finishReason) {
      case "eos":
        return this.#strings.endedEos;
      case "length":
        return fill(this.#strings.endedLength, { tokens: tokenIds.length });
      case "stop":
        return fill(this.#strings.endedStop, { stop: (stop ?? "").replaceAll("\n", "\\n") });
      case "interrupted":
        return this.#strings.endedStopped;
    }
  }

  #figures({ tokenIds, statistics, seed }: GenerationResult): string {
    return fill(seed === null ? this.#strings.figuresPlain : this.#strings.figures, {
      tokens: tokenIds.length,
      speed: decimal(statistics.decodeTokensPerSecond, 0, this.#language),
      first: decimal(statistics.timeToFirstTokenSeconds, 2, this.#language),
      seed: String(seed),
    });
  }
}
