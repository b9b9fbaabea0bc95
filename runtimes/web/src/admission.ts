/** Whether a bundle can run in a browser: asked with its manifest, before its weights are fetched. */
import { GRAPH, WEIGHTS_FILE } from "./bundle.js";
import { WASM_LIMIT_BYTES } from "./engine.js";
import { HeliumError } from "./errors.js";
import { fileRecord, type GraphRecord, type Manifest } from "./manifest.js";
import { cacheBytes } from "./wasm-engine.js";

/** `asked`, or the model's. Throws a UsageError. */
export function checkedContextLength(manifest: Manifest, asked: number | null): number {
  const most = manifest.model_config.max_position_embeddings;
  if (asked === null) return most;
  if (!Number.isSafeInteger(asked) || asked < 1 || asked > most) {
    throw new HeliumError("UsageError", "contextLength has a value that it cannot have", {
      found: asked,
      expected: `an integer from 1 to ${most}, the model's`,
    });
  }
  return asked;
}

/** Throws a BundleError for graphs that are not for CPUs, a ResourceError for what does not fit the memory. */
export function checkRunsHere(manifest: Manifest, contextLength: number): void {
  const graph = manifest.graphs[GRAPH]!;
  const inputs = graph.inputs.map((spec) => spec.name);
  const logits = graph.outputs.find((spec) => spec.name === "logits");
  if (!inputs.includes("attention_mask") || logits?.dtype !== "float32") {
    throw new HeliumError("BundleError", "The bundle is not for browsers", {
      found: `recipe ${manifest.recipe.name}, for ${manifest.recipe.execution_provider}`,
      expected: "one that runs on CPUs in float32",
      remedy: "export with the recipe cpu-int4 or cpu-fp32",
    });
  }
  const cache = wholeCacheBytes(graph, contextLength);
  const weights = fileRecord(manifest, WEIGHTS_FILE).size;
  if (weights + cache >= WASM_LIMIT_BYTES) {
    throw new HeliumError("ResourceError", "The bundle is too large for a browser", {
      found: `${gigabytes(weights)} of weights and ${gigabytes(cache)} of keys and values`,
      expected: "less than 4.29 GB together, which WebAssembly can address",
      remedy: "take the recipe cpu-int4, or a smaller contextLength",
    });
  }
}

/** Quantized weights up to here are expanded unasked: while they are loaded, the page holds them once more. */
const EXPANDED_LIMIT_BYTES = 2 ** 30;

/** Whether weights that take `bytes` in float32 may be expanded unasked: while they are packed, they are there twice. */
export function mayExpand(bytes: number, graph: GraphRecord, contextLength: number): boolean {
  return bytes <= EXPANDED_LIMIT_BYTES && 2 * bytes + wholeCacheBytes(graph, contextLength) < WASM_LIMIT_BYTES;
}

function wholeCacheBytes(graph: GraphRecord, contextLength: number): number {
  const caches = graph.inputs.filter((spec) => spec.name.startsWith("past_key_values."));
  return caches.reduce((sum, spec) => sum + cacheBytes(spec, contextLength), 0);
}

function gigabytes(bytes: number): string {
  return `${(bytes / 1e9).toFixed(2)} GB`;
}
