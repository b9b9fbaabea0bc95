import { describe, expect, it } from "vitest";
import { checkedContextLength, checkRunsHere, mayExpand } from "../src/admission.js";
import type { Manifest, TensorSpec } from "../src/manifest.js";

/** Helium 2 B's sizes: 24 layers of 20 heads of 128. */
function manifest(weightsBytes: number, changes: { inputs?: TensorSpec[]; logits?: string } = {}): Manifest {
  const dims = ["batch_size", 20, "past_sequence_length", 128];
  const past = Array.from({ length: 48 }, (_, i) => {
    return { name: `past_key_values.${i >> 1}.${i % 2 ? "value" : "key"}`, dtype: "float32", dims };
  });
  const inputs = [
    { name: "input_ids", dtype: "int64", dims: [] },
    { name: "attention_mask", dtype: "int64", dims: [] },
  ];
  return {
    recipe: { name: "some-recipe", execution_provider: "some-provider" },
    model_config: { max_position_embeddings: 4096 },
    graphs: {
      prefill: {
        inputs: changes.inputs ?? [...inputs, ...past],
        outputs: [{ name: "logits", dtype: changes.logits ?? "float32", dims: [] }],
      },
    },
    files: [{ path: "onnx/model.onnx_data", size: weightsBytes, sha256: "" }],
  } as unknown as Manifest;
}

describe("checkRunsHere", () => {
  it("takes what fits 4 GB", () => {
    expect(() => checkRunsHere(manifest(1.5e9), 4096)).not.toThrow(); // and 2.01 GB of keys and values
    expect(() => checkRunsHere(manifest(3e9), 1024)).not.toThrow();
  });

  it("refuses what does not, and says why", () => {
    expect(() => checkRunsHere(manifest(3e9), 4096)).toThrow(
      /too large for a browser\n {2}found: {4}3\.00 GB of weights and 2\.01 GB of keys and values\n.*\n.*smaller contextLength/,
    );
    expect(() => checkRunsHere(manifest(8.7e9), 1)).toThrow(/8\.70 GB/);
  });

  it("refuses graphs for other providers, and names a recipe", () => {
    const forGpu = [
      { name: "input_ids", dtype: "int64", dims: [] },
      { name: "seqlens_k", dtype: "int32", dims: [] },
    ];
    const message = /not for browsers\n {2}found: {4}recipe some-recipe, for some-provider\n[^]*cpu-int4/;
    expect(() => checkRunsHere(manifest(1, { inputs: forGpu }), 1)).toThrow(message);
    expect(() => checkRunsHere(manifest(1, { logits: "float16" }), 1)).toThrow(message);
  });

  it("refuses a manifest without weights", () => {
    expect(() => checkRunsHere({ ...manifest(1), files: [] }, 1)).toThrow(/no onnx\/model\.onnx_data in helium\.json/);
  });
});

describe("mayExpand", () => {
  it("is for weights that fit the memory twice beside keys and values", () => {
    const graph = manifest(1).graphs["prefill"]!;
    expect(mayExpand(1e9, graph, 4096)).toBe(true); // 2.01 GB of keys and values
    expect(mayExpand(1e9, graph, 4700)).toBe(false);
    expect(mayExpand(1.1e9, graph, 1)).toBe(false);
  });
});

describe("checkedContextLength", () => {
  it("is the model's unless one is asked for", () => {
    expect(checkedContextLength(manifest(1), null)).toBe(4096);
    expect(checkedContextLength(manifest(1), 100)).toBe(100);
  });

  it.each([0, 4097, 1.5])("refuses %d", (asked) => {
    expect(() => checkedContextLength(manifest(1), asked)).toThrow(/an integer from 1 to 4096/);
  });
});
