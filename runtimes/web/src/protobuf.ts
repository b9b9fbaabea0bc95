/** Protocol Buffers' wire format, as far as ONNX files use it: fields read, replaced and written back, no schema. */

/** One field. A number (wire type 0) is in `value` too; what is not understood is written as it was read. */
export interface Field {
  number: number;
  wire: number;
  value: number;
  bytes: Uint8Array;
}

const NOTHING = new Uint8Array(0);
const FIXED: Record<number, number> = { 1: 8, 5: 4 };
const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** The fields of a message, in their order. Throws a RangeError where the message is cut off or of another format. */
export function readFields(message: Uint8Array): Field[] {
  const fields: Field[] = [];
  let at = 0;
  const varint = (): number => {
    // Numbers above 2^53 lose bits, and negative ones come out as 2^64 less: ONNX has neither where this looks.
    for (let value = 0, factor = 1; ; factor *= 128) {
      const byte = message[at++];
      if (byte === undefined) throw new RangeError("a message ends within a number");
      value += (byte & 0x7f) * factor;
      if (byte < 0x80) return value;
    }
  };
  while (at < message.length) {
    const key = varint();
    const [number, wire] = [Math.floor(key / 8), key % 8];
    const begin = at;
    if (wire === 0) {
      const value = varint();
      fields.push({ number, wire, value, bytes: message.subarray(begin, at) });
      continue;
    }
    const size = wire === 2 ? varint() : FIXED[wire];
    if (size === undefined || at + size > message.length)
      throw new RangeError(`no field of wire type ${wire} at ${begin}`);
    fields.push({ number, wire, value: 0, bytes: message.subarray(at, (at += size)) });
  }
  return fields;
}

export function writeFields(fields: readonly Field[]): Uint8Array<ArrayBuffer> {
  const parts: Uint8Array[] = [];
  for (const { number, wire, bytes } of fields) {
    parts.push(varintBytes(number * 8 + wire));
    if (wire === 2) parts.push(varintBytes(bytes.length));
    parts.push(bytes);
  }
  const message = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    message.set(part, at);
    at += part.length;
  }
  return message;
}

export function number(field: number, value: number): Field {
  return { number: field, wire: 0, value, bytes: varintBytes(value) };
}

/** A text or a message. */
export function bytes(field: number, content: string | Uint8Array): Field {
  return { number: field, wire: 2, value: 0, bytes: typeof content === "string" ? encoder.encode(content) : content };
}

export function textOf(field: Field | undefined): string {
  return decoder.decode(field?.bytes ?? NOTHING);
}

function varintBytes(value: number): Uint8Array {
  const all: number[] = [];
  for (; value >= 128; value = Math.floor(value / 128)) all.push(value % 128 | 0x80);
  all.push(value);
  return Uint8Array.from(all);
}
