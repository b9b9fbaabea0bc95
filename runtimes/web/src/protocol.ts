/** What page and worker say to each other. */
import type { BundleSource, LoadProgress } from "./bundle.js";
import type { EngineMemory } from "./engine.js";
import type { PlainError } from "./errors.js";
import type { GenerationOptions, GenerationResult } from "./generation.js";

export interface ModelInfo {
  /** What runs the model. */
  provider: "wasm" | "webgpu";
  /** Where it is not what was asked for: why. */
  fallback: string | null;
  /** Whether quantized weights are float32 in memory. */
  expanded: boolean;
  /** Threads that WebAssembly computes with. */
  threads: number;
  /** Why there is only one, where the caller did not ask for one. */
  threadsReason: string | null;
  contextLength: number;
  vocabSize: number;
  recipe: string;
  /** SHA-256 that identifies the bundle. */
  digest: string;
  cache: "hit" | "stored" | "off" | "unavailable" | "full";
  memory: Memory;
}

/** Bytes. `weightsBytes` is the size of the weights' file; `heapBytes` counts weights and cache too. */
export interface Memory extends EngineMemory {
  weightsBytes: number;
}

export interface WorkerOptions {
  provider: "wasm" | "webgpu";
  threads: number | null;
  contextLength: number | null;
  expandWeights: boolean | null;
  cache: boolean;
}

export type ToWorker =
  | { type: "load"; source: BundleSource; options: WorkerOptions }
  | { type: "generate"; id: number; prompt: string; options: GenerationOptions }
  | { type: "abort"; id: number };

export type FromWorker =
  | { type: "progress"; progress: LoadProgress }
  | { type: "loaded"; info: ModelInfo }
  | { type: "load-failed"; error: PlainError }
  | { type: "text"; id: number; piece: string }
  | { type: "done"; id: number; result: GenerationResult; memory: Memory }
  | { type: "failed"; id: number; error: PlainError };
