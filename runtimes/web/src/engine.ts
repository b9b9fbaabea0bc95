/** What runs a bundle's graph: one row, its keys and values kept where the graph runs. */
export interface Engine {
  readonly provider: "wasm" | "webgpu";
  readonly threads: number;
  readonly contextLength: number;
  /** Tokens in the past; 0 begins a new text. Setting it back forgets the last ones. */
  length: number;
  /**
   * Run new tokens after the past; logits of the last, [vocab_size], valid until the next call.
   * A prompt is cut into chunks, between which `pause` is awaited: it may throw.
   */
  run(ids: readonly number[], pause?: () => Promise<void>): Promise<Float32Array>;
  memory(): EngineMemory;
  dispose(): void;
}

export interface EngineMemory {
  /** Of keys and values: for the whole context where they are in place, else as many as there are now. */
  cacheBytes: number;
  /** The whole of WebAssembly's memory: weights, keys and values, and what else it needs. Null: on a GPU, not known. */
  heapBytes: number | null;
}

/** WebAssembly addresses this much, and no more. */
export const WASM_LIMIT_BYTES = 2 ** 32;
