/** The model: loading it with progress, what runs it, and what went wrong. */
import { load, type BundleFolder, type LanguageModel, type LoadProgress } from "@helium-onnx/web";
import { byId } from "./dom.js";
import { problemOf, showProblem, type Problem } from "./problems.js";
import type { Provider } from "./settings.js";
import { fill, megabytes, type Language, type Strings } from "./strings.js";

type State =
  | { name: "waiting" }
  | { name: "loading"; progress: LoadProgress | null; abort: AbortController }
  | { name: "ready"; model: LanguageModel }
  | { name: "problem"; problem: Problem };

export class ModelPanel {
  /** Where the bundle is: an address, or files that the reader chose. */
  #folder: BundleFolder;
  #state: State = { name: "waiting" };
  #provider: Provider = "wasm";
  #offline = false;
  #strings!: Strings;
  #language!: Language;

  /** `onChange` is called when there is a model, and when there is none any more. */
  constructor(
    address: string,
    readonly onChange: () => void,
  ) {
    this.#folder = address;
    byId("cancel").addEventListener("click", () => this.#state.name === "loading" && this.#state.abort.abort());
    byId("load").addEventListener("click", () => void this.load(this.#provider));
    byId("choose").addEventListener("click", () => byId("folder").click());
    byId("folder").addEventListener("change", (event) => {
      const input = event.target as HTMLInputElement;
      if (input.files?.length) this.#folder = [...input.files];
      input.value = ""; // the same folder may be chosen again
      void this.load(this.#provider);
    });
    // The page itself is kept by its service worker, once that is active.
    void navigator.serviceWorker?.ready.then(() => {
      this.#offline = true;
      this.#show();
    });
  }

  get model(): LanguageModel | null {
    return this.#state.name === "ready" ? this.#state.model : null;
  }

  get loading(): boolean {
    return this.#state.name === "loading";
  }

  speak(strings: Strings, language: Language): void {
    this.#strings = strings;
    this.#language = language;
    this.#show();
  }

  /** After a text: memory may have grown. */
  refresh(): void {
    this.#show();
  }

  /** Loads the model, in place of the one that there is. Whatever goes wrong is shown. */
  async load(provider: Provider): Promise<void> {
    if (this.#state.name === "loading") this.#state.abort.abort();
    this.model?.close();
    this.#provider = provider;
    const mine: State = { name: "loading", progress: null, abort: new AbortController() };
    this.#become(mine);
    const isCurrent = (): boolean => this.#state === mine;
    try {
      const model = await load(this.#folder, {
        provider,
        signal: mine.abort.signal,
        onProgress: (progress) => {
          mine.progress = progress;
          if (isCurrent()) this.#show();
        },
      });
      if (!isCurrent()) return model.close();
      this.#become({ name: "ready", model });
      // Kept models are the first that a browser short of room would drop.
      if (model.info.cache === "stored") void navigator.storage?.persist?.().catch(() => false);
    } catch (error) {
      const address = typeof this.#folder === "string" ? this.#folder : "";
      if (isCurrent()) this.#become({ name: "problem", problem: problemOf(error, { address }) });
    }
  }

  #become(state: State): void {
    this.#state = state;
    this.#show();
    this.onChange();
  }

  #show(): void {
    const state = this.#state;
    const strings = this.#strings;
    const idle = state.name === "waiting" || state.name === "problem";
    byId("model").dataset["state"] = state.name;
    byId("model-loading").hidden = state.name !== "loading";
    byId("model-ready").hidden = state.name !== "ready";
    byId("model-choice").hidden = !idle;
    byId("load").textContent = state.name === "problem" ? strings.tryAgain : strings.loadModel;
    showProblem("model-problem", state.name === "problem" ? state.problem : null, strings);
    if (state.name === "loading") this.#showProgress(state.progress);
    if (state.name === "ready") byId("ready-text").textContent = this.#ready(state.model);
    const notices = state.name === "ready" ? this.#notices(state.model) : [];
    if (state.name === "waiting") notices.push(strings.noticeSaveData);
    byId("model-notices").replaceChildren(
      ...notices.map((text) => Object.assign(document.createElement("li"), { textContent: text })),
    );
  }

  #showProgress(progress: LoadProgress | null): void {
    const bar = byId<HTMLProgressElement>("loading-bar");
    if (progress === null || progress.step === "start") {
      bar.removeAttribute("value");
      byId("loading-text").textContent = progress ? this.#strings.startingModel : `${this.#strings.loadingModel}…`;
      return;
    }
    bar.value = progress.loadedBytes / progress.totalBytes;
    byId("loading-text").textContent = fill(
      progress.step === "download" ? this.#strings.loadingBytes : this.#strings.loadingCache,
      {
        loaded: megabytes(progress.loadedBytes, this.#language),
        total: megabytes(progress.totalBytes, this.#language),
      },
    );
  }

  #ready({ info, memory }: LanguageModel): string {
    const strings = this.#strings;
    const wasm = info.threads === 1 ? strings.readyWasmOne : fill(strings.readyWasm, { threads: info.threads });
    const parts = [info.provider === "webgpu" ? strings.readyWebgpu : wasm];
    const bytes = memory.heapBytes ?? memory.weightsBytes + memory.cacheBytes;
    parts.push(fill(strings.memory, { size: megabytes(bytes, this.#language) }));
    if (this.#offline && (info.cache === "hit" || info.cache === "stored")) parts.push(strings.worksOffline);
    return parts.join(" · ");
  }

  #notices({ info }: LanguageModel): string[] {
    const strings = this.#strings;
    const notices = [];
    if (info.fallback !== null) {
      const none = !("gpu" in navigator);
      notices.push(none ? strings.noticeNoWebgpu : fill(strings.noticeWebgpuFailed, { reason: info.fallback }));
    }
    if (info.threadsReason !== null && !crossOriginIsolated) notices.push(strings.noticeNotIsolated);
    if (info.cache === "full") notices.push(strings.noticeFull);
    if (info.cache === "unavailable") notices.push(strings.noticeNotKept);
    return notices;
  }
}
