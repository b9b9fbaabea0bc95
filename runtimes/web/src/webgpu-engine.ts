/**
 * The graph on the GPU, over onnxruntime-web's JavaScript interface: keys and values stay in GPU buffers, each step's
 * outputs being the next one's inputs. ONNX Runtime computes operators that have no GPU kernel on the CPU, unasked.
 */
import type * as Ort from "onnxruntime-web";
import type { Engine, EngineMemory } from "./engine.js";
import { HeliumError, messageOf } from "./errors.js";
import type { TensorSpec } from "./manifest.js";
import { cacheBytes, type WasmEngineOptions } from "./wasm-engine.js";

/** Attention over a prompt of 32 tokens or more was found wrong on a software adapter; below, exact. */
const CHUNK = 16;

export class WebGpuEngine implements Engine {
  readonly provider = "webgpu";
  readonly threads = 1;
  readonly contextLength: number;
  length = 0;
  readonly #ort: typeof Ort;
  readonly #session: Ort.InferenceSession;
  readonly #specs: TensorSpec[];
  #past: Ort.Tensor[] = [];
  #pastLength = 0;

  /** `ort` is onnxruntime-web's WebGPU build. Throws a ProviderError that says why there is no WebGPU. */
  static async create(
    ort: typeof Ort,
    paths: { mjs: string; wasm: string },
    options: WasmEngineOptions,
  ): Promise<WebGpuEngine> {
    const specs = options.record.inputs.filter((spec) => spec.name.startsWith("past_key_values."));
    if (specs.some((spec) => spec.dtype !== "float32"))
      throw unavailable("the bundle's keys and values are no float32");
    ort.env.wasm.wasmPaths = paths;
    ort.env.wasm.numThreads = 1;
    const onGpu = specs.map((spec) => [spec.name.replace("past_key_values", "present"), "gpu-buffer"] as const);
    try {
      const session = await ort.InferenceSession.create(options.graph, {
        executionProviders: ["webgpu"],
        externalData: [...options.files].map(([path, data]) => ({ path, data })),
        preferredOutputLocation: Object.fromEntries(onGpu),
        logSeverityLevel: 3,
      });
      return new WebGpuEngine(ort, session, specs, options.contextLength);
    } catch (error) {
      throw unavailable(messageOf(error));
    }
  }

  private constructor(ort: typeof Ort, session: Ort.InferenceSession, specs: TensorSpec[], contextLength: number) {
    this.#ort = ort;
    this.#session = session;
    this.#specs = specs;
    this.contextLength = contextLength;
  }

  async run(ids: readonly number[], pause?: () => Promise<void>): Promise<Float32Array> {
    let logits = new Float32Array(0);
    for (let start = 0; start < ids.length; start += CHUNK) {
      if (start > 0) await pause?.();
      logits = await this.#step(ids.slice(start, start + CHUNK));
    }
    return logits;
  }

  memory(): EngineMemory {
    return {
      cacheBytes: this.#specs.reduce((sum, spec) => sum + cacheBytes(spec, this.#pastLength), 0),
      heapBytes: null,
    };
  }

  dispose(): void {
    for (const tensor of this.#past) tensor.dispose();
    void this.#session.release();
  }

  async #step(ids: readonly number[]): Promise<Float32Array<ArrayBuffer>> {
    const total = this.length + ids.length;
    if (this.length !== this.#pastLength || this.#past.length === 0) {
      if (this.length !== 0) throw new Error("a growing past can only be emptied");
      for (const tensor of this.#past) tensor.dispose();
      this.#past = this.#specs.map((spec) => {
        return new this.#ort.Tensor("float32", new Float32Array(0), [1, Number(spec.dims[1]), 0, Number(spec.dims[3])]);
      });
    }
    const feeds: Record<string, Ort.Tensor> = {
      input_ids: new this.#ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      attention_mask: new this.#ort.Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]),
    };
    this.#specs.forEach((spec, i) => (feeds[spec.name] = this.#past[i]!));
    const outputs = await this.#session.run(feeds);
    for (const tensor of this.#past) tensor.dispose();
    this.#past = this.#specs.map((spec) => outputs[spec.name.replace("past_key_values", "present")]!);
    this.length = this.#pastLength = total;
    return outputs["logits"]!.data as Float32Array<ArrayBuffer>;
  }
}

function unavailable(found: string): HeliumError {
  return new HeliumError("ProviderError", "WebGPU cannot run the bundle here", { found });
}

/** Why this browser has no WebGPU, or null where it has. */
export async function whyNoWebGpu(): Promise<string | null> {
  const gpu = (navigator as { gpu?: { requestAdapter(): Promise<object | null> } }).gpu;
  if (!gpu) return "the browser has no WebGPU, or the page is not secure (https)";
  return (await gpu.requestAdapter().catch(() => null)) ? null : "the browser has WebGPU, but no GPU that it may use";
}
