/** The worker: loads a bundle and serves one request at a time, so that the page never waits. */
import type * as Ort from "onnxruntime-web";
import { checkedContextLength, checkRunsHere, mayExpand } from "./admission.js";
import { GRAPH, readBundle, WEIGHTS_FILE } from "./bundle.js";
import type { Engine } from "./engine.js";
import { HeliumError, messageOf, type PlainError } from "./errors.js";
import { expand, EXPANDED_NAME, expandedBytes } from "./expand.js";
import { checkedRequest, generate } from "./generation.js";
import type { FromWorker, Memory, ToWorker, WorkerOptions } from "./protocol.js";
import { chooseThreads } from "./threads.js";
import { Tokenizer } from "./tokenizer.js";
import { startRuntime, WasmEngine, type WasmEngineOptions, type WasmFactory, type WasmModule } from "./wasm-engine.js";
import { WebGpuEngine, whyNoWebGpu } from "./webgpu-engine.js";

/** Made by the build: addresses of ONNX Runtime's files, which lie in a folder beside this one. */
declare const RUNTIME_SCRIPT: string;
declare const RUNTIME_BINARY: string;
/** Of its build for GPUs, which is fetched only where it is asked for. */
declare const GPU_LIBRARY: string;
declare const GPU_SCRIPT: string;
declare const GPU_BINARY: string;

interface Loaded {
  engine: Engine;
  tokenizer: Tokenizer;
  weightsBytes: number;
}

let loaded: Loaded | null = null;
let requests: Promise<void> = Promise.resolve();
const aborts = new Map<number, AbortController>();

function send(message: FromWorker): void {
  postMessage(message);
}

addEventListener("message", ({ data }: MessageEvent<ToWorker>) => {
  if (data.type === "load") {
    load(data.source, data.options).catch((error: unknown) => send({ type: "load-failed", error: plain(error) }));
  } else if (data.type === "generate") {
    const abort = new AbortController();
    aborts.set(data.id, abort);
    requests = requests.then(() => serve(data.id, data.prompt, data.options, abort.signal));
  } else if (data.type === "abort") {
    aborts.get(data.id)?.abort();
  }
});

async function load(source: Parameters<typeof readBundle>[0], options: WorkerOptions): Promise<void> {
  const { threads, reason } = chooseThreads(options.threads, {
    isolated: globalThis.crossOriginIsolated === true && typeof SharedArrayBuffer !== "undefined",
    cores: navigator.hardwareConcurrency || 1,
  });
  let contextLength = 0;
  let runtime: Promise<WasmModule> | null = null;
  const startOnce = (): Promise<WasmModule> => (runtime ??= start(threads));
  const bundle = await readBundle(source, {
    cache: options.cache,
    onProgress: throttled((progress) => send({ type: "progress", progress })),
    admit: (manifest) => {
      contextLength = checkedContextLength(manifest, options.contextLength);
      checkRunsHere(manifest, contextLength);
      // ONNX Runtime starts while the weights come; what it throws is thrown where it is needed.
      if (options.provider === "wasm") startOnce().catch(() => undefined);
    },
  });
  const { manifest } = bundle;
  const tokenizer = new Tokenizer(bundle.tokenizerJson, manifest.model_config);
  const weightsBytes = bundle.weights.length;
  const { totalBytes } = bundle;
  send({ type: "progress", progress: { step: "start", file: "", loadedBytes: totalBytes, totalBytes } });
  const { engine, fallback, expanded } = await openEngine(options, startOnce, {
    graph: bundle.graph,
    files: new Map([[WEIGHTS_FILE.split("/").at(-1)!, bundle.weights]]),
    record: manifest.graphs[GRAPH]!,
    vocabSize: manifest.model_config.vocab_size,
    contextLength,
    threads,
    inPlace: manifest.recipe.graph.operators === "onnxruntime",
  });
  loaded = { engine, tokenizer, weightsBytes };
  send({
    type: "loaded",
    info: {
      provider: engine.provider,
      fallback,
      expanded,
      threads: engine.threads,
      threadsReason: engine.provider === "wasm" ? reason : null,
      contextLength,
      vocabSize: tokenizer.vocabSize,
      recipe: manifest.recipe.name,
      digest: manifest.manifest_sha256,
      cache: bundle.cache,
      memory: memoryOf(loaded),
    },
  });
}

/** The engine that was asked for; or WebAssembly's, and why. */
async function openEngine(
  { provider, expandWeights }: WorkerOptions,
  start: () => Promise<WasmModule>,
  options: WasmEngineOptions,
): Promise<{ engine: Engine; fallback: string | null; expanded: boolean }> {
  let fallback: string | null = null;
  if (provider === "webgpu") {
    fallback = await whyNoWebGpu();
    if (fallback === null) {
      try {
        const ort = await imported<typeof Ort>(GPU_LIBRARY);
        const engine = await WebGpuEngine.create(ort, { mjs: GPU_SCRIPT, wasm: GPU_BINARY }, options);
        return { engine, fallback, expanded: false };
      } catch (error) {
        fallback = messageOf(error);
      }
    }
  }
  const bytes = expandedBytes(options.graph);
  const expanded = bytes > 0 && (expandWeights ?? mayExpand(bytes, options.record, options.contextLength));
  if (expanded) {
    const { graph, matrices } = expand(options.graph, options.files.values().next().value!);
    options = { ...options, graph, files: new Map([...options.files, [EXPANDED_NAME, matrices]]) };
  }
  return { engine: await WasmEngine.create(await start(), options), fallback, expanded };
}

async function start(threads: number): Promise<WasmModule> {
  const { default: factory } = await imported<{ default: WasmFactory }>(RUNTIME_SCRIPT);
  return await startRuntime(factory, RUNTIME_BINARY, threads);
}

async function imported<T>(script: string): Promise<T> {
  try {
    return (await import(/* @vite-ignore */ script)) as T;
  } catch (error) {
    throw new HeliumError("ProviderError", "ONNX Runtime's files cannot be loaded", {
      found: messageOf(error),
      expected: `${script}, and the .wasm file beside it`,
      remedy: "serve the package's folder dist/ort together with its scripts",
    });
  }
}

async function serve(
  id: number,
  prompt: string,
  options: Parameters<typeof checkedRequest>[3],
  signal: AbortSignal,
): Promise<void> {
  try {
    const model = loaded!; // the page asks only after it was loaded
    const request = checkedRequest(model.tokenizer, model.engine.contextLength, prompt, options);
    const onText = (piece: string): void => send({ type: "text", id, piece });
    const result = await generate(model.engine, model.tokenizer, request, onText, signal, hearMessages);
    send({ type: "done", id, result, memory: memoryOf(model) });
  } catch (error) {
    send({ type: "failed", id, error: plain(error) });
  } finally {
    aborts.delete(id);
  }
}

/** Let messages come in: a promise alone would not, and a timer waits 4 ms. */
const channel = new MessageChannel();
function hearMessages(): Promise<void> {
  return new Promise((resolve) => {
    channel.port1.onmessage = () => resolve();
    channel.port2.postMessage(null);
  });
}

function memoryOf({ engine, weightsBytes }: Loaded): Memory {
  return { ...engine.memory(), weightsBytes };
}

/** At most 20 reports a second, and each file's last. */
function throttled<P extends { file: string; step: string }>(report: (progress: P) => void): (progress: P) => void {
  let last = { file: "", time: 0 };
  let waiting: P | null = null;
  return (progress) => {
    const now = performance.now();
    if (waiting && waiting.file !== progress.file) report(waiting);
    waiting = progress;
    if (progress.file !== last.file || now - last.time >= 50) {
      last = { file: progress.file, time: now };
      waiting = null;
      report(progress);
    }
  };
}

function plain(error: unknown): PlainError {
  if (error instanceof HeliumError) return error.toPlain();
  const memory = error instanceof RangeError && /memory|allocation/i.test(error.message);
  return new HeliumError(
    memory ? "ResourceError" : "GenerationError",
    memory ? "The browser has too little memory for the bundle" : "Something failed that should not have",
    { found: messageOf(error) },
  ).toPlain();
}
