/** The page's side: `load` starts a worker, and `LanguageModel` speaks to it. */
import type { BundleSource, LoadProgress } from "./bundle.js";
import { HeliumError } from "./errors.js";
import type { GenerationOptions, GenerationResult } from "./generation.js";
import type { FromWorker, Memory, ModelInfo, ToWorker } from "./protocol.js";

/** Made by the build: a bundler of the page finds the worker's file by exactly this expression. */
declare function createWorker(): Worker;

export interface LoadOptions {
  /** `webgpu` falls back to `wasm` where there is none, and `info.fallback` says why. Default `wasm`. */
  provider?: "wasm" | "webgpu";
  /** Default: the cores, up to 8; 1 where the page is not cross-origin isolated. */
  threads?: number;
  /** Bounds prompt and new tokens, and the memory of keys and values. Default: the model's. */
  contextLength?: number;
  /**
   * Turn quantized weights into float32 in memory, which WebAssembly computes with several times faster (WebGPU leaves
   * them as they are). Default: where that takes 1 GiB at most.
   */
  expandWeights?: boolean;
  /** Keep the bundle in the Cache API, so that the next load needs no download. Default true. */
  cache?: boolean;
  onProgress?: (progress: LoadProgress) => void;
  signal?: AbortSignal;
}

/** A bundle's folder: its URL, the files of an `<input type="file" webkitdirectory>`, or a directory handle. */
export type BundleFolder = string | URL | FileList | readonly File[] | FileSystemDirectoryHandle;

/**
 * Load a bundle in a new worker.
 *
 * Rejects with a HeliumError (`kind` tells which), or with the signal's reason.
 */
export async function load(folder: BundleFolder, options: LoadOptions = {}): Promise<LanguageModel> {
  options.signal?.throwIfAborted();
  const source = await asSource(folder);
  const worker = createWorker();
  const { promise, resolve, reject } = deferred<LanguageModel>();
  const abort = (): void => reject(options.signal?.reason);
  options.signal?.addEventListener("abort", abort);
  worker.onerror = (event) => {
    event.preventDefault();
    const found = event.message || "no message";
    reject(new HeliumError("ProviderError", "The worker does not start", { found, remedy: "serve dist/worker.js" }));
  };
  worker.onmessage = ({ data }: MessageEvent<FromWorker>) => {
    if (data.type === "progress") options.onProgress?.(data.progress);
    else if (data.type === "loaded") resolve(new LanguageModel(worker, data.info));
    else if (data.type === "load-failed") reject(HeliumError.fromPlain(data.error));
  };
  const { provider = "wasm", threads = null, contextLength = null, expandWeights = null, cache = true } = options;
  worker.postMessage({
    type: "load",
    source,
    options: { provider, threads, contextLength, expandWeights, cache },
  } satisfies ToWorker);
  try {
    return await promise;
  } catch (error) {
    worker.terminate();
    throw error;
  } finally {
    options.signal?.removeEventListener("abort", abort);
  }
}

export interface StreamOptions extends GenerationOptions {
  /** Ends the text; what there is is the result, with `finishReason` "interrupted". */
  signal?: AbortSignal;
}

/** A loaded bundle. Requests are served one after the other, in the order in which they were made. */
export class LanguageModel {
  readonly info: ModelInfo;
  readonly #worker: Worker;
  readonly #streams = new Map<number, TextStreamState>();
  #memory: Memory;
  #nextId = 1;
  #closed = false;

  /** Not for callers: `load` makes it. */
  constructor(worker: Worker, info: ModelInfo) {
    this.#worker = worker;
    this.info = info;
    this.#memory = info.memory;
    worker.onmessage = ({ data }: MessageEvent<FromWorker>) => this.#receive(data);
    worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(new HeliumError("GenerationError", "The worker broke down", { found: event.message || "no message" }));
    };
  }

  /** As of the last request's end. */
  get memory(): Memory {
    return this.#memory;
  }

  /**
   * Continue a prompt, piece by piece. Leaving the loop early ends the text. Errors (UsageError, PromptError,
   * ContextOverflowError, GenerationError) come out of the first `next()` and of `result`.
   */
  stream(prompt: string, options: StreamOptions = {}): TextIterator {
    const { signal, ...rest } = options;
    const id = this.#nextId++;
    const state = new TextStreamState(() => this.#post({ type: "abort", id }));
    if (this.#closed) {
      state.fail(new HeliumError("GenerationError", "This model has been closed", { remedy: "load the bundle again" }));
      return new TextIterator(state);
    }
    this.#streams.set(id, state);
    this.#post({ type: "generate", id, prompt, options: rest });
    if (signal?.aborted) state.abort();
    const abort = (): void => state.abort();
    signal?.addEventListener("abort", abort);
    const forget = (): void => signal?.removeEventListener("abort", abort);
    state.result.then(forget, forget);
    return new TextIterator(state);
  }

  /** Continue a prompt and give the whole result. Rejects as `stream`. */
  async generate(prompt: string, options: StreamOptions = {}): Promise<GenerationResult> {
    return await this.stream(prompt, options).result;
  }

  /** End the worker and free its memory. Texts in progress end with an error. */
  close(): void {
    this.#fail(new HeliumError("GenerationError", "This model has been closed", { remedy: "load the bundle again" }));
    this.#worker.terminate();
  }

  #post(message: ToWorker): void {
    this.#worker.postMessage(message);
  }

  #receive(message: FromWorker): void {
    if (message.type !== "text" && message.type !== "done" && message.type !== "failed") return;
    const state = this.#streams.get(message.id);
    if (message.type === "text") return state?.add(message.piece);
    this.#streams.delete(message.id);
    if (message.type === "failed") return state?.fail(HeliumError.fromPlain(message.error));
    this.#memory = message.memory;
    state?.end(message.result);
  }

  #fail(error: HeliumError): void {
    this.#closed = true;
    for (const state of this.#streams.values()) state.fail(error);
    this.#streams.clear();
  }
}

/** The pieces of one text; `result` is there after the last. */
export class TextIterator implements AsyncIterableIterator<string> {
  readonly #state: TextStreamState;

  constructor(state: TextStreamState) {
    this.#state = state;
  }

  get result(): Promise<GenerationResult> {
    return this.#state.result;
  }

  next(): Promise<IteratorResult<string>> {
    return this.#state.next();
  }

  /** `break` in a `for await` loop comes here: the text ends as interrupted. */
  async return(): Promise<IteratorResult<string>> {
    this.#state.abort();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}

/** Pieces that have come and were not yet asked for, and who waits for one. */
class TextStreamState {
  readonly result: Promise<GenerationResult>;
  readonly #settled = deferred<GenerationResult>();
  readonly #pieces: string[] = [];
  #wake = deferred<void>();
  #ended = false;

  constructor(readonly abort: () => void) {
    this.result = this.#settled.promise;
    this.result.catch(() => undefined); // who only iterates learns of it there
  }

  add(piece: string): void {
    this.#pieces.push(piece);
    this.#rouse();
  }

  end(result: GenerationResult): void {
    this.#settled.resolve(result);
    this.#ended = true;
    this.#rouse();
  }

  fail(error: HeliumError): void {
    this.#settled.reject(error);
    this.#ended = true;
    this.#rouse();
  }

  async next(): Promise<IteratorResult<string>> {
    while (this.#pieces.length === 0 && !this.#ended) await this.#wake.promise;
    const value = this.#pieces.shift();
    if (value !== undefined) return { done: false, value };
    await this.result; // throws where it failed
    return { done: true, value: undefined };
  }

  #rouse(): void {
    this.#wake.resolve();
    this.#wake = deferred<void>();
  }
}

async function asSource(folder: BundleFolder): Promise<BundleSource> {
  if (typeof folder === "string" || folder instanceof URL) {
    return { url: addressOf(folder) };
  }
  if ("kind" in folder && folder.kind === "directory") {
    return { files: await filesOf(folder, "") };
  }
  const files = Array.from(folder as ArrayLike<File>);
  return {
    files: files.map((file) => ({
      // "folder/onnx/prefill.onnx" of a chosen folder; files chosen one by one have their names alone.
      path: file.webkitRelativePath ? file.webkitRelativePath.replace(/^[^/]*\//, "") : insideBundle(file.name),
      file,
    })),
  };
}

function addressOf(folder: string | URL): string {
  try {
    return new URL(folder, document.baseURI).href;
  } catch {
    throw new HeliumError("DownloadError", "The bundle's folder is no address", {
      found: folder,
      expected: "a URL, or a path relative to the page",
    });
  }
}

function insideBundle(name: string): string {
  return /\.onnx(_data)?$/.test(name) ? `onnx/${name}` : name;
}

async function filesOf(folder: FileSystemDirectoryHandle, above: string): Promise<{ path: string; file: Blob }[]> {
  const files: { path: string; file: Blob }[] = [];
  for await (const [name, entry] of folder as unknown as AsyncIterable<[string, FileSystemHandle]>) {
    if (entry.kind === "file")
      files.push({ path: above + name, file: await (entry as FileSystemFileHandle).getFile() });
    else files.push(...(await filesOf(entry as FileSystemDirectoryHandle, `${above}${name}/`)));
  }
  return files;
}

interface Deferred<T> {
  promise: Promise<T>;
  resolve: (value: T) => void;
  reject: (reason: unknown) => void;
}

function deferred<T>(): Deferred<T> {
  let resolve!: (value: T) => void;
  let reject!: (reason: unknown) => void;
  const promise = new Promise<T>((onValue, onReason) => ([resolve, reject] = [onValue, onReason]));
  return { promise, resolve, reject };
}
