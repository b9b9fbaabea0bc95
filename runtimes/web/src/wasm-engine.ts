/**
 * The graph on the CPU, over onnxruntime-web's WebAssembly module.
 *
 * The module's own C interface is used (that of onnxruntime-web's `lib/wasm/wasm-types.ts`; its version is pinned): the
 * JavaScript one copies every input and output at each step, keys and values of the whole context included, and cannot
 * give a graph a buffer to write into. Here they stay in WebAssembly's memory and never move.
 *
 * One graph serves prefill and decode: two sessions would hold the weights twice, and prefill.onnx, which gives the
 * logits of the last token alone, gives decode's for one token.
 */
import type { Engine, EngineMemory } from "./engine.js";
import { HeliumError, messageOf } from "./errors.js";
import type { GraphRecord, TensorSpec } from "./manifest.js";

export interface WasmModule {
  HEAPU8: Uint8Array;
  _malloc(bytes: number): number;
  _free(address: number): void;
  stackSave(): number;
  stackRestore(stack: number): void;
  stackAlloc(bytes: number): number;
  getValue(address: number, type: string): number;
  setValue(address: number, value: number, type: string): void;
  UTF8ToString(address: number): string;
  lengthBytesUTF8(text: string): number;
  stringToUTF8(text: string, address: number, bytes: number): void;
  mountExternalData(path: string, data: Uint8Array): void;
  unmountExternalData(): void;
  _OrtInit(threads: number, logLevel: number): number;
  _OrtGetLastError(code: number, message: number): number;
  _OrtCreateSessionOptions(...settings: (number | boolean)[]): number;
  _OrtReleaseSessionOptions(options: number): number;
  _OrtAddSessionConfigEntry(options: number, key: number, value: number): number;
  _OrtCreateSession(graph: number, bytes: number, options: number): number | Promise<number>;
  _OrtReleaseSession(session: number): number;
  _OrtCreateTensor(type: number, data: number, bytes: number, dims: number, rank: number, location: number): number;
  _OrtReleaseTensor(tensor: number): number;
  _OrtRun(
    session: number,
    inputNames: number,
    inputs: number,
    inputCount: number,
    outputNames: number,
    outputCount: number,
    outputs: number,
    options: number,
  ): number | Promise<number>;
}

export type WasmFactory = (settings: {
  numThreads: number;
  locateFile?: (name: string) => string;
}) => Promise<WasmModule>;

/** ONNX's numbers of element types, and bytes of each. */
const TYPES: Record<string, [number: number, bytes: number]> = { float32: [1, 4], int64: [7, 8], float16: [10, 2] };
const ON_CPU = 1;
const POINTER = 4;
/** Tokens of one call of a prompt: between two of them the worker hears of an abort. */
const CHUNK = 64;

export interface WasmEngineOptions {
  graph: Uint8Array;
  /** Files of weights, under the names by which the graph speaks of them, relative to itself. */
  files: Map<string, Uint8Array>;
  record: GraphRecord;
  vocabSize: number;
  contextLength: number;
  threads: number;
  /** Past and present may be one buffer of the whole context (graphs of com.microsoft's attention). */
  inPlace: boolean;
}

export class WasmEngine implements Engine {
  readonly provider = "wasm";
  readonly threads: number;
  readonly contextLength: number;
  length = 0;
  readonly #module: WasmModule;
  readonly #session: number;
  readonly #vocabSize: number;
  readonly #specs: TensorSpec[];
  readonly #inPlace: boolean;
  readonly #owned: number[] = [];
  readonly #inputNames: number;
  readonly #outputNames: number;
  readonly #inputs: number;
  readonly #outputs: number;
  readonly #ids: number;
  readonly #mask: number;
  readonly #logits: number;
  /** Addresses of keys and values, where they are in place. */
  readonly #buffers: number[] = [];
  /** Tensors of keys and values: those buffers', or the last call's outputs. */
  #past: number[] = [];
  #pastLength = 0;
  #cacheBytes = 0;

  static async create(module: WasmModule, options: WasmEngineOptions): Promise<WasmEngine> {
    return new WasmEngine(module, await openSession(module, options), options);
  }

  private constructor(module: WasmModule, session: number, options: WasmEngineOptions) {
    this.#module = module;
    this.#session = session;
    this.threads = options.threads;
    this.contextLength = options.contextLength;
    this.#vocabSize = options.vocabSize;
    this.#inPlace = options.inPlace;
    this.#specs = options.record.inputs.filter((spec) => spec.name.startsWith("past_key_values."));
    const pasts = this.#specs.map((spec) => spec.name);
    const presents = pasts.map((name) => name.replace("past_key_values", "present"));
    this.#inputNames = this.#names(["input_ids", "attention_mask", ...pasts]);
    this.#outputNames = this.#names(["logits", ...presents]);
    this.#inputs = this.#allocate((2 + pasts.length) * POINTER);
    this.#outputs = this.#allocate((1 + pasts.length) * POINTER);
    this.#ids = this.#allocate(CHUNK * 8);
    this.#mask = this.#allocate(this.contextLength * 8);
    this.#logits = this.#allocate(this.#vocabSize * 4);
    const mask = new Int32Array(this.#heap(), this.#mask, this.contextLength * 2);
    for (let i = 0; i < mask.length; i++) mask[i] = 1 - (i % 2); // ones in int64, low word first
    if (this.#inPlace) {
      for (const spec of this.#specs) {
        const bytes = this.#bytes(spec, this.contextLength);
        this.#cacheBytes += bytes;
        this.#buffers.push(this.#allocate(bytes));
      }
      this.#past = this.#specs.map((spec, i) => this.#cacheTensor(spec, this.contextLength, this.#buffers[i]!));
    }
  }

  async run(ids: readonly number[], pause?: () => Promise<void>): Promise<Float32Array> {
    for (let start = 0; start < ids.length; start += CHUNK) {
      if (start > 0) await pause?.();
      await this.#step(ids.slice(start, start + CHUNK));
    }
    return new Float32Array(this.#heap(), this.#logits, this.#vocabSize);
  }

  memory(): EngineMemory {
    return { cacheBytes: this.#cacheBytes, heapBytes: this.#heap().byteLength };
  }

  dispose(): void {
    for (const tensor of this.#past) this.#module._OrtReleaseTensor(tensor);
    this.#module._OrtReleaseSession(this.#session);
    for (const address of this.#owned) this.#module._free(address);
  }

  async #step(ids: readonly number[]): Promise<void> {
    const module = this.#module;
    const total = this.length + ids.length;
    if (total > this.contextLength) throw new Error("the past is full"); // requests are checked before
    const words = new Int32Array(this.#heap(), this.#ids, ids.length * 2);
    ids.forEach((id, i) => {
      words[2 * i] = id;
      words[2 * i + 1] = 0;
    });
    if (!this.#inPlace) this.#startGrowing();
    const idTensor = this.#tensor("int64", [1, ids.length], this.#ids);
    const maskTensor = this.#tensor("int64", [1, total], this.#mask);
    const logitsTensor = this.#tensor("float32", [1, 1, this.#vocabSize], this.#logits);
    [idTensor, maskTensor, ...this.#past].forEach((t, i) => module.setValue(this.#inputs + i * POINTER, t, "*"));
    const presents = this.#inPlace ? this.#past : this.#past.map(() => 0); // 0: the graph makes a new one
    [logitsTensor, ...presents].forEach((t, i) => module.setValue(this.#outputs + i * POINTER, t, "*"));
    let code: number;
    try {
      code = await module._OrtRun(
        this.#session,
        this.#inputNames,
        this.#inputs,
        2 + this.#past.length,
        this.#outputNames,
        1 + this.#past.length,
        this.#outputs,
        0,
      );
    } catch (error) {
      throw broken(error);
    }
    for (const tensor of [idTensor, maskTensor, logitsTensor]) module._OrtReleaseTensor(tensor);
    if (code !== 0) throw lastError(module, "The model cannot run");
    if (!this.#inPlace) {
      for (const tensor of this.#past) module._OrtReleaseTensor(tensor);
      this.#past = this.#specs.map((_, i) => module.getValue(this.#outputs + (i + 1) * POINTER, "*"));
      this.#cacheBytes = this.#specs.reduce((sum, spec) => sum + this.#bytes(spec, total), 0);
    }
    this.length = this.#pastLength = total;
  }

  /** Tensors that grow can begin anew, but not be cut: rows of a head lie apart. */
  #startGrowing(): void {
    if (this.length === this.#pastLength && this.#past.length > 0) return;
    if (this.length !== 0) throw new Error("a growing past can only be emptied");
    for (const tensor of this.#past) this.#module._OrtReleaseTensor(tensor);
    this.#past = this.#specs.map((spec) => this.#cacheTensor(spec, 0, this.#ids));
  }

  #cacheTensor(spec: TensorSpec, length: number, address: number): number {
    return this.#tensor(spec.dtype, [1, Number(spec.dims[1]), length, Number(spec.dims[3])], address);
  }

  #bytes(spec: TensorSpec, length: number): number {
    return cacheBytes(spec, length);
  }

  #tensor(dtype: string, dims: number[], address: number): number {
    const module = this.#module;
    const [type, bytes] = TYPES[dtype]!;
    const stack = module.stackSave();
    try {
      const at = module.stackAlloc(dims.length * POINTER);
      dims.forEach((dim, i) => module.setValue(at + i * POINTER, dim, "i32"));
      const size = dims.reduce((a, b) => a * b, bytes);
      const tensor = module._OrtCreateTensor(type, address, size, at, dims.length, ON_CPU);
      if (tensor === 0) throw lastError(module, "ONNX Runtime cannot make a tensor");
      return tensor;
    } finally {
      module.stackRestore(stack);
    }
  }

  /** Memory as it is now: it may have grown on another thread, which `getValue` takes notice of. */
  #heap(): ArrayBufferLike {
    this.#module.getValue(this.#inputNames || POINTER, "i32");
    return this.#module.HEAPU8.buffer;
  }

  #allocate(bytes: number): number {
    const address = this.#module._malloc(bytes);
    if (address === 0) throw tooLittleMemory(`no ${bytes} bytes left for keys and values`);
    this.#owned.push(address);
    return address;
  }

  #names(names: string[]): number {
    const list = this.#allocate(names.length * POINTER);
    names.forEach((name, i) => {
      const address = writeText(this.#module, name);
      this.#owned.push(address);
      this.#module.setValue(list + i * POINTER, address, "*");
    });
    return list;
  }
}

/** `factory` is the default export of onnxruntime-web's `ort-wasm-simd-threaded.mjs`. */
export async function startRuntime(factory: WasmFactory, wasmUrl: string, threads: number): Promise<WasmModule> {
  const module = await factory({ numThreads: threads, locateFile: () => wasmUrl });
  if (module._OrtInit(threads, 3) !== 0) throw lastError(module, "ONNX Runtime does not start");
  return module;
}

/** Bytes of one key or value tensor over `length` tokens. Throws a BundleError for a type that is not known. */
export function cacheBytes(spec: TensorSpec, length: number): number {
  const type = TYPES[spec.dtype];
  if (!type) {
    throw new HeliumError("BundleError", "The bundle keeps keys and values in a type that browsers do not run", {
      found: spec.dtype,
      expected: Object.keys(TYPES).join(", "),
      remedy: "export with the recipe cpu-int4 or cpu-fp32",
    });
  }
  return Number(spec.dims[1]) * length * Number(spec.dims[3]) * type[1];
}

async function openSession(module: WasmModule, options: WasmEngineOptions): Promise<number> {
  const graph = module._malloc(options.graph.length);
  // All optimizations; no arena and no memory pattern, which hold more memory than they save time; errors alone.
  const settings = module._OrtCreateSessionOptions(99, false, false, 0, false, 0, 0, 3, 0, 0);
  if (graph === 0 || settings === 0) throw lastError(module, "ONNX Runtime does not start");
  try {
    module.HEAPU8.set(options.graph, graph);
    for (const [name, data] of options.files) module.mountExternalData(name, data);
    const session = await module._OrtCreateSession(graph, options.graph.length, settings);
    if (session === 0) throw lastError(module, "ONNX Runtime cannot load the bundle's graph");
    return session;
  } catch (error) {
    throw broken(error);
  } finally {
    module.unmountExternalData();
    module._OrtReleaseSessionOptions(settings);
    module._free(graph);
  }
}

function writeText(module: WasmModule, text: string): number {
  const bytes = module.lengthBytesUTF8(text) + 1;
  const address = module._malloc(bytes);
  module.stringToUTF8(text, address, bytes);
  return address;
}

function lastError(module: WasmModule, what: string): HeliumError {
  const stack = module.stackSave();
  try {
    const at = module.stackAlloc(2 * POINTER);
    module._OrtGetLastError(at, at + POINTER);
    const message = module.getValue(at + POINTER, "*");
    const text = message === 0 ? "no message" : module.UTF8ToString(message);
    if (/bad_alloc|out of memory|allocat/i.test(text)) return tooLittleMemory(text);
    return new HeliumError("ProviderError", what, { found: text });
  } finally {
    module.stackRestore(stack);
  }
}

/** What WebAssembly threw: mostly that its memory is used up. */
function broken(error: unknown): unknown {
  if (error instanceof HeliumError) return error;
  const text = messageOf(error);
  if (typeof error === "number" || /memory|bad_alloc/i.test(text)) return tooLittleMemory(text);
  return new HeliumError("ProviderError", "ONNX Runtime failed", { found: text });
}

function tooLittleMemory(found: string): HeliumError {
  return new HeliumError("ResourceError", "The browser has too little memory for the bundle", {
    found,
    expected: "weights, keys and values within 4 GB of WebAssembly's memory",
    remedy: "take a smaller bundle (cpu-int4), or a smaller contextLength",
  });
}
