import { describe, expect, it } from "vitest";
import { expand, EXPANDED_NAME, expandedBytes } from "../src/expand.js";
import { readFields, textOf, writeFields } from "../src/protobuf.js";
import { readText } from "./files.js";

const cases: Record<"graph" | "weights" | "matrix", string>[] = JSON.parse(readText("tests/vectors/matrices.json"));
const bytesOf = (base64: string): Uint8Array<ArrayBuffer> => new Uint8Array(Buffer.from(base64, "base64"));

/** Of each node: its operator and inputs. */
function nodesOf(model: Uint8Array): { opType: string; inputs: string[] }[] {
  const graph = readFields(readFields(model).find((field) => field.number === 7)!.bytes);
  return graph
    .filter((field) => field.number === 1)
    .map((node) => readFields(node.bytes))
    .map((parts) => ({
      opType: textOf(parts.find((part) => part.number === 4)),
      inputs: parts.filter((part) => part.number === 1).map(textOf),
    }));
}

describe("expand", () => {
  it.each(cases.map((one, index) => [index, one] as const))("gives ONNX Runtime's matrix: case %i", (_, one) => {
    const graph = bytesOf(one.graph);
    const wanted = bytesOf(one.matrix);
    expect(expandedBytes(graph)).toBe(wanted.length);
    const expanded = expand(graph, bytesOf(one.weights));
    expect(Buffer.compare(expanded.matrices, wanted)).toBe(0);
    expect(nodesOf(expanded.graph)).toEqual([{ opType: "MatMul", inputs: ["x", "weight.expanded"] }]);
    expect(expandedBytes(expanded.graph)).toBe(0);
    const text = Buffer.from(expanded.graph).toString("latin1");
    expect(text).toContain(EXPANDED_NAME);
    expect(text).not.toContain("scales"); // neither the tensor nor its Cast
  });

  it("says which tensor has no values", () => {
    expect(() => expand(bytesOf(cases[0]!.graph), new Uint8Array(0))).toThrow(/no values of (scales|weight)/);
  });
});

describe("Protocol Buffers", () => {
  it("are written as they were read", () => {
    const graph = bytesOf(cases[0]!.graph);
    expect(writeFields(readFields(graph))).toEqual(graph);
  });

  it("that are cut off are an error", () => {
    const graph = bytesOf(cases[0]!.graph);
    expect(() => readFields(graph.subarray(0, graph.length - 1))).toThrow(RangeError);
    expect(() => readFields(Uint8Array.of(0x08))).toThrow(/ends within a number/);
    expect(() => readFields(Uint8Array.of(0x0b))).toThrow(/wire type 3/);
  });
});
