/**
 * Quantized weights as float32 matrices, made while a bundle is loaded.
 *
 * ONNX Runtime's WebAssembly build has no kernel for MatMulNBits: at every token it turns each matrix into float32 and
 * multiplies then. A graph that does so once is as fast as one of float32, at the download of the quantized one.
 *
 * Pattern: MatMulNBits(x, B, scales, zero_points?), scales an initializer or its Cast from float16.
 * Replacement: MatMul(x, B') with B' = (B - zero point) * scale, [K, N] in float32: the numbers that the kernel makes.
 */
import { bytes, number, readFields, textOf, writeFields, type Field } from "./protobuf.js";

// Numbers of fields in onnx.proto.
const MODEL = { graph: 7 };
const GRAPH = { node: 1, initializer: 5, output: 12 };
const NODE = { input: 1, output: 2, opType: 4, attribute: 5, domain: 7 };
const ATTRIBUTE = { name: 1, integer: 3 };
const TENSOR = { dims: 1, dataType: 2, name: 8, rawData: 9, externalData: 13, dataLocation: 14 };
const VALUE = { name: 1 };
const ENTRY = { key: 1, value: 2 };
const [FLOAT, FLOAT16, EXTERNAL] = [1, 10, 1];

/** Where the new matrices are, as the graph names it. */
export const EXPANDED_NAME = "expanded_weights";

export interface Expanded {
  graph: Uint8Array<ArrayBuffer>;
  /** The new matrices, one after the other. */
  matrices: Uint8Array<ArrayBuffer>;
}

interface Node {
  field: Field;
  opType: string;
  inputs: string[];
  outputs: string[];
  attributes: Map<string, number>;
}

/**
 * Bytes that the matrices of `graph` would take in float32; 0 where none is quantized. Throws a RangeError where
 * `graph` is no ONNX file.
 */
export function expandedBytes(graph: Uint8Array): number {
  const nodes = readFields(onlyGraph(readFields(graph)).bytes).filter((field) => field.number === GRAPH.node);
  return nodes
    .map(readNode)
    .filter(isQuantized)
    .reduce((sum, node) => sum + 4 * size(node, "K") * size(node, "N"), 0);
}

/** `weights` is the file in which the graph's initializers are. */
export function expand(graph: Uint8Array, weights: Uint8Array): Expanded {
  const model = readFields(graph);
  const fields = readFields(onlyGraph(model).bytes);
  const nodes = fields.filter((field) => field.number === GRAPH.node).map(readNode);
  const initializers = new Map<string, Field[]>();
  for (const field of fields) {
    if (field.number !== GRAPH.initializer) continue;
    const tensor = readFields(field.bytes);
    initializers.set(textOf(tensor.find((part) => part.number === TENSOR.name)), tensor);
  }
  const casts = new Map(
    nodes.filter((node) => node.opType === "Cast").map((node) => [node.outputs[0]!, node.inputs[0]!]),
  );
  const matrices = new Uint8Array(expandedBytes(graph));
  let offset = 0;
  const added: Field[] = [];
  const kept = nodes.map((node): Node => {
    if (!isQuantized(node)) return node;
    const [x, b, scales, zeroPoints] = node.inputs;
    const read = (name: string): { type: number; data: Uint8Array } => contentOf(initializers.get(name), name, weights);
    const scale = read(casts.get(scales!) ?? scales!);
    const [K, N] = [size(node, "K"), size(node, "N")];
    const target = new Float32Array(matrices.buffer, offset, K * N);
    dequantize(target, {
      K,
      N,
      bits: size(node, "bits"),
      blockSize: size(node, "block_size"),
      quantized: read(b!).data,
      scales: scale.type === FLOAT16 ? fromFloat16(scale.data) : floats(scale.data),
      zeroPoints: zeroPoints ? read(zeroPoints).data : null,
    });
    const name = `${b!}.expanded`;
    added.push(bytes(GRAPH.initializer, externalTensor(name, [K, N], offset)));
    offset += target.byteLength;
    return matMul(node, x!, name);
  });
  const outputs = fields
    .filter((field) => field.number === GRAPH.output)
    .map((field) => textOf(readFields(field.bytes).find((part) => part.number === VALUE.name)));
  const asked = (by: Node[]): Set<string> => new Set([...outputs, ...by.flatMap((node) => node.inputs)]);
  // What is left over is not run and not read: the Casts of scales, and the quantized matrices.
  const askedAtAll = asked(kept);
  const live = kept.filter((node) => node.outputs.some((name) => askedAtAll.has(name)));
  const needed = asked(live);
  const rest = fields.filter((field) => {
    if (field.number !== GRAPH.initializer) return field.number !== GRAPH.node;
    return needed.has(textOf(readFields(field.bytes).find((part) => part.number === TENSOR.name)));
  });
  const content = writeFields([...live.map((node) => node.field), ...rest, ...added]);
  const others = model.filter((field) => field.number !== MODEL.graph);
  return { graph: writeFields([...others, bytes(MODEL.graph, content)]), matrices };
}

interface Quantized {
  K: number;
  N: number;
  bits: number;
  blockSize: number;
  /** [N, blocks of K, blockSize * bits / 8]: low bits first. */
  quantized: Uint8Array;
  /** [N, blocks of K] */
  scales: Float32Array;
  /** [N, ceil(blocks * bits / 8)], low bits first; null: the middle of the range. */
  zeroPoints: Uint8Array | null;
}

/** Writes (quantized - zero point) * scale, transposed: `target` is [K, N]. */
function dequantize(target: Float32Array, { K, N, bits, blockSize, quantized, scales, zeroPoints }: Quantized): void {
  const blocks = Math.ceil(K / blockSize);
  const perByte = 8 / bits;
  const mask = 2 ** bits - 1;
  const rowBytes = (blocks * blockSize) / perByte;
  const zeroBytes = Math.ceil(blocks / perByte);
  for (let n = 0; n < N; n++) {
    for (let block = 0; block < blocks; block++) {
      const scale = scales[n * blocks + block]!;
      const packed = zeroPoints?.[n * zeroBytes + Math.floor(block / perByte)];
      const zero = packed === undefined ? 2 ** (bits - 1) : (packed >> ((block % perByte) * bits)) & mask;
      const end = Math.min((block + 1) * blockSize, K);
      for (let k = block * blockSize; k < end; k++) {
        const byte = quantized[n * rowBytes + Math.floor(k / perByte)]!;
        target[k * N + n] = (((byte >> ((k % perByte) * bits)) & mask) - zero) * scale;
      }
    }
  }
}

function onlyGraph(model: Field[]): Field {
  const graph = model.find((field) => field.number === MODEL.graph);
  if (!graph) throw new RangeError("an ONNX file without a graph");
  return graph;
}

function isQuantized(node: Node): boolean {
  return node.opType === "MatMulNBits" && [4, 8].includes(size(node, "bits")) && node.inputs.length <= 4;
}

function size(node: Node, name: string): number {
  return node.attributes.get(name) ?? 0;
}

function readNode(field: Field): Node {
  const parts = readFields(field.bytes);
  const texts = (number: number): string[] => parts.filter((part) => part.number === number).map(textOf);
  const attributes = parts.filter((part) => part.number === NODE.attribute).map((part) => readFields(part.bytes));
  const find = (attribute: Field[], number: number): Field | undefined => attribute.find((p) => p.number === number);
  return {
    field,
    opType: texts(NODE.opType)[0] ?? "",
    inputs: texts(NODE.input),
    outputs: texts(NODE.output),
    attributes: new Map(
      attributes.map((a) => [textOf(find(a, ATTRIBUTE.name)), find(a, ATTRIBUTE.integer)?.value ?? 0]),
    ),
  };
}

function matMul(node: Node, x: string, matrix: string): Node {
  const replaced: number[] = [NODE.input, NODE.opType, NODE.attribute, NODE.domain];
  const others = readFields(node.field.bytes).filter((part) => !replaced.includes(part.number));
  const parts = [bytes(NODE.input, x), bytes(NODE.input, matrix), ...others, bytes(NODE.opType, "MatMul")];
  return { ...node, opType: "MatMul", inputs: [x, matrix], field: bytes(GRAPH.node, writeFields(parts)) };
}

function externalTensor(name: string, dims: number[], offset: number): Uint8Array {
  const entry = (key: string, value: string): Field =>
    bytes(TENSOR.externalData, writeFields([bytes(ENTRY.key, key), bytes(ENTRY.value, value)]));
  return writeFields([
    ...dims.map((dim) => number(TENSOR.dims, dim)),
    number(TENSOR.dataType, FLOAT),
    bytes(TENSOR.name, name),
    entry("location", EXPANDED_NAME),
    entry("offset", String(offset)),
    entry("length", String(4 * dims.reduce((a, b) => a * b))),
    number(TENSOR.dataLocation, EXTERNAL),
  ]);
}

function contentOf(tensor: Field[] | undefined, name: string, weights: Uint8Array): { type: number; data: Uint8Array } {
  const raw = tensor?.find((part) => part.number === TENSOR.rawData)?.bytes;
  const entries = new Map(
    (tensor ?? [])
      .filter((part) => part.number === TENSOR.externalData)
      .map((part) => readFields(part.bytes))
      .map((entry) => [
        textOf(entry.find((part) => part.number === ENTRY.key)),
        Number(textOf(entry.find((part) => part.number === ENTRY.value))),
      ]),
  );
  const offset = entries.get("offset") ?? 0;
  const data = raw ?? weights.subarray(offset, offset + (entries.get("length") ?? 0));
  if (tensor === undefined || data.length === 0) throw new RangeError(`no values of ${name} in the bundle`);
  return { type: tensor.find((part) => part.number === TENSOR.dataType)?.value ?? 0, data };
}

function floats(data: Uint8Array): Float32Array {
  return new Float32Array(data.slice().buffer); // a copy: it may begin anywhere
}

function fromFloat16(data: Uint8Array): Float32Array {
  const halves = new Uint16Array(data.slice().buffer);
  return Float32Array.from(halves, (half) => {
    const [exponent, fraction] = [(half >> 10) & 31, half & 1023];
    const sign = half >> 15 ? -1 : 1;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  });
}
