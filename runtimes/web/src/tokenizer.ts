/**
 * Helium's tokenizer: Unigram with byte fallback, `<s>` first. Encodes and decodes as `helium_onnx/tokenizer.py` does,
 * that is, as the `tokenizers` library, but for two things: control tokens that a user typed are text, and bytes that
 * are no character become U+FFFD without ending the stream.
 */
import { HeliumError } from "./errors.js";

/** What the library takes off the lowest score of the vocabulary for a character that is in no piece. */
const UNKNOWN_PENALTY = 10;
const BYTE_PIECE = /^<0x([0-9A-F]{2})>$/;

interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  normalized: boolean;
  single_word: boolean;
  lstrip: boolean;
  rstrip: boolean;
}

interface Node {
  next: Map<number, Node>;
  id: number;
}

type Step = (text: string) => string;

export class Tokenizer {
  readonly bosTokenId: number | null;
  readonly eosTokenIds: readonly number[];
  readonly #pieces: string[];
  readonly #scores: number[];
  readonly #unkId: number;
  readonly #unkScore: number;
  readonly #byteIds: (number | undefined)[] = [];
  readonly #byteOf = new Map<number, number>();
  readonly #special: Set<number>;
  readonly #trie: Node = { next: new Map(), id: -1 };
  readonly #added: AddedToken[];
  readonly #normalize: Step;
  readonly #split: string | null;
  readonly #decodeReplacements: [string, string][] = [];
  readonly #stripsFirstSpace: boolean;
  readonly #prefix: number[];

  /** `json` is the text of tokenizer.json, `config` the checkpoint's config.json. Throws a TokenizerError. */
  constructor(json: string, config: { vocab_size: number; bos_token_id?: number | null; eos_token_id?: unknown }) {
    try {
      const spec = JSON.parse(json);
      if (spec.model.type !== "Unigram") throw unsupported(`a ${spec.model.type} model`, "a Unigram model");
      const vocab: [string, number][] = spec.model.vocab;
      this.#pieces = vocab.map(([piece]) => piece);
      this.#scores = vocab.map(([, score]) => score);
      this.#unkId = spec.model.unk_id;
      if (!(this.#unkId >= 0 && this.#unkId < vocab.length)) throw unsupported(`unk_id ${this.#unkId}`, "an id");
      this.#unkScore = this.#scores.reduce((a, b) => Math.min(a, b), Infinity) - UNKNOWN_PENALTY;
      const added: AddedToken[] = [...spec.added_tokens].sort((a, b) => a.id - b.id);
      for (const token of added) if (token.id >= vocab.length) this.#pieces[token.id] = token.content;
      this.#special = new Set(added.filter((token) => token.special).map((token) => token.id));
      this.#added = added.filter((token) => !token.special);
      for (const token of this.#added) {
        if (token.normalized || token.single_word || token.lstrip || token.rstrip) {
          throw unsupported(
            `added token ${JSON.stringify(token.content)} with options`,
            "one that matches as it stands",
          );
        }
      }
      if (spec.model.byte_fallback) {
        for (const [id, piece] of this.#pieces.entries()) {
          const match = BYTE_PIECE.exec(piece);
          if (match) {
            this.#byteIds[parseInt(match[1]!, 16)] = id;
            this.#byteOf.set(id, parseInt(match[1]!, 16));
          }
        }
      }
      for (let id = 0; id < vocab.length; id++) {
        // Typed by a user, the name of a control token or of a byte is text.
        if (!this.#special.has(id) && !this.#byteOf.has(id) && id !== this.#unkId) this.#insert(this.#pieces[id]!, id);
      }
      this.#normalize = normalizer(spec.normalizer);
      this.#split = splitPattern(spec.pre_tokenizer);
      this.#stripsFirstSpace = this.#readDecoder(spec.decoder);
      this.#prefix = templatePrefix(spec.post_processor);
    } catch (error) {
      if (error instanceof HeliumError) throw error;
      throw new HeliumError("TokenizerError", "tokenizer.json is malformed", {
        found: error,
        expected: "a Unigram tokenizer",
        remedy: "copy the checkpoint's own tokenizer.json again",
      });
    }
    if (this.#pieces.length !== config.vocab_size) {
      throw new HeliumError("TokenizerError", "The tokenizer does not fit the model's vocabulary", {
        found: `${this.#pieces.length} ids`,
        expected: `${config.vocab_size}, the model's vocab_size`,
        remedy: "take the tokenizer.json of the same bundle",
      });
    }
    this.bosTokenId = config.bos_token_id ?? null;
    const eos = config.eos_token_id;
    this.eosTokenIds = Array.isArray(eos) ? eos : typeof eos === "number" ? [eos] : [];
  }

  get vocabSize(): number {
    return this.#pieces.length;
  }

  /**
   * Token ids of `text`, after `<s>`. Throws a PromptError where `text` is no string, holds a lone surrogate, or gives
   * no token at all.
   */
  encode(text: string): number[] {
    if (typeof text !== "string") {
      throw new HeliumError("PromptError", "The prompt is no text", {
        found: `a ${typeof text}`,
        expected: "a string",
      });
    }
    const lone = /[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/.exec(text);
    if (lone) {
      throw new HeliumError("PromptError", "The prompt holds half a character (a lone surrogate)", {
        found: `U+${lone[0].charCodeAt(0).toString(16).toUpperCase()} at position ${lone.index}`,
        expected: "Unicode text",
      });
    }
    const ids = [...this.#prefix];
    for (const part of this.#parts(text)) {
      if (typeof part === "number") ids.push(part);
      else for (const section of this.#sections(this.#normalize(part))) this.#viterbi(section, ids);
    }
    if (ids.length === 0) {
      throw new HeliumError("PromptError", "The prompt is empty", { expected: "at least one character" });
    }
    return ids;
  }

  /** Reads the tokens that follow `promptIds` as text, one by one. */
  stream(promptIds: readonly number[]): TextStream {
    const nothingShown = promptIds.every((id) => this.tokenBytes(id).length === 0);
    return new TextStream(this, nothingShown && this.#stripsFirstSpace);
  }

  /** UTF-8 of one token in the middle of a text: " the", one byte of a character, or nothing for `<s>`. */
  tokenBytes(id: number): Uint8Array {
    const piece = this.#pieces[id];
    if (piece === undefined) {
      throw new HeliumError("TokenizerError", "A token id is outside the vocabulary", {
        found: id,
        expected: `0 to ${this.#pieces.length - 1}`,
      });
    }
    if (this.#special.has(id)) return new Uint8Array(0);
    const byte = this.#byteOf.get(id);
    if (byte !== undefined) return Uint8Array.of(byte);
    let text = piece;
    for (const [from, to] of this.#decodeReplacements) text = text.replaceAll(from, () => to);
    return encoder.encode(text);
  }

  #insert(piece: string, id: number): void {
    let node = this.#trie;
    for (let i = 0; i < piece.length; i++) {
      const unit = piece.charCodeAt(i);
      let child = node.next.get(unit);
      if (!child) node.next.set(unit, (child = { next: new Map(), id: -1 }));
      node = child;
    }
    node.id = id;
  }

  /** Text between added tokens, and the ids of those; of tokens that start at one place, the longest. */
  *#parts(text: string): Generator<string | number> {
    let start = 0;
    for (let at = 0; at < text.length; ) {
      let found: AddedToken | null = null;
      for (const token of this.#added) {
        if (text.startsWith(token.content, at) && token.content.length > (found?.content.length ?? 0)) found = token;
      }
      if (found === null) {
        at++;
        continue;
      }
      if (at > start) yield text.slice(start, at);
      yield found.id;
      start = at += found.content.length;
    }
    if (start < text.length) yield text.slice(start);
  }

  /** The pre-tokenizer: runs of the split pattern apart from the rest ("Contiguous"). */
  #sections(text: string): string[] {
    const pattern = this.#split;
    if (pattern === null || !text.includes(pattern)) return [text];
    const escaped = pattern.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    return text.split(new RegExp(`((?:${escaped})+)`, "u")).filter((section) => section !== "");
  }

  /** The best segmentation of `text`, its ids appended to `ids`; characters in no piece as their bytes. */
  #viterbi(text: string, ids: number[]): void {
    const size = text.length; // UTF-16 units: pieces begin and end between characters all the same
    const best = new Float64Array(size + 1);
    const from = new Int32Array(size + 1).fill(-1);
    const chosen = new Int32Array(size + 1);
    for (let start = 0; start < size; ) {
      const width = text.codePointAt(start)! > 0xffff ? 2 : 1;
      let single = false;
      let node: Node | undefined = this.#trie;
      for (let end = start + 1; end <= size; end++) {
        node = node.next.get(text.charCodeAt(end - 1));
        if (node === undefined) break;
        if (node.id < 0) continue;
        const score = this.#scores[node.id]! + best[start]!;
        if (from[end] === -1 || score > best[end]!) {
          best[end] = score;
          from[end] = start;
          chosen[end] = node.id;
        }
        if (end - start === width) single = true;
      }
      if (!single) {
        const end = start + width;
        const score = this.#unkScore + best[start]!;
        if (from[end] === -1 || score > best[end]!) {
          best[end] = score;
          from[end] = start;
          chosen[end] = this.#unkId;
        }
      }
      start += width;
    }
    const path: [number, number, number][] = [];
    for (let end = size; end > 0; end = from[end]!) path.push([chosen[end]!, from[end]!, end]);
    path.reverse();
    for (let index = 0; index < path.length; index++) {
      const [id, start] = path[index]!;
      if (id !== this.#unkId) {
        ids.push(id);
        continue;
      }
      while (index + 1 < path.length && path[index + 1]![0] === this.#unkId) index++; // a run is one unknown
      const bytes = [...encoder.encode(text.slice(start, path[index]![2]))].map((byte) => this.#byteIds[byte]);
      if (bytes.every((known) => known !== undefined)) ids.push(...(bytes as number[]));
      else ids.push(this.#unkId);
    }
  }

  /** Fills in what one token reads as; returns whether the first space of a text is stripped. */
  #readDecoder(spec: { type: string; decoders: Record<string, unknown>[] } | null): boolean {
    let strips = false;
    for (const step of steps(spec, "decoders")) {
      if (step.type === "Replace" && typeof step.pattern?.String === "string") {
        this.#decodeReplacements.push([step.pattern.String, step.content]);
      } else if (step.type === "Strip" && step.content === " " && step.start === 1 && step.stop === 0) strips = true;
      else if (step.type !== "ByteFallback" && step.type !== "Fuse") throw unsupported(`decoder ${step.type}`, KNOWN);
    }
    return strips;
  }
}

/** Tokens in, text out, as soon as it is certain: a character is shown when its last byte is there. */
export class TextStream {
  readonly #tokenizer: Tokenizer;
  #stripFirstSpace: boolean;
  readonly #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

  constructor(tokenizer: Tokenizer, stripFirstSpace: boolean) {
    this.#tokenizer = tokenizer;
    this.#stripFirstSpace = stripFirstSpace;
  }

  /** The text that the token completes, possibly none. Half a character at the end of all is never shown. */
  push(id: number): string {
    let data = this.#tokenizer.tokenBytes(id);
    if (data.length > 0 && this.#stripFirstSpace) {
      this.#stripFirstSpace = false;
      if (data[0] === 0x20) data = data.subarray(1);
    }
    return this.#utf8.decode(data, { stream: true });
  }
}

const encoder = new TextEncoder();
const KNOWN = "the steps of Helium's tokenizer.json";

function unsupported(found: string, expected: string): HeliumError {
  return new HeliumError("TokenizerError", "The tokenizer is none of Helium's", { found, expected });
}

function steps(spec: unknown, list: string): any[] {
  const step = spec as Record<string, unknown> | null;
  if (step === null || step === undefined) return [];
  return step["type"] === "Sequence" ? (step[list] as unknown[]) : [step];
}

function normalizer(spec: unknown): Step {
  const done: Step[] = steps(spec, "normalizers").map((step): Step => {
    if (step.type === "Prepend") return (text) => (text === "" ? "" : step.prepend + text);
    if (step.type === "Replace" && typeof step.pattern?.String === "string") {
      return (text) => text.replaceAll(step.pattern.String, () => step.content);
    }
    throw unsupported(`normalizer ${step.type}`, KNOWN);
  });
  return (text) => done.reduce((value, step) => step(value), text);
}

function splitPattern(spec: unknown): string | null {
  const all = steps(spec, "pretokenizers");
  if (all.length === 0) return null;
  const [step] = all;
  const plain = step.type === "Split" && typeof step.pattern?.String === "string" && !step.invert;
  if (all.length > 1 || !plain || step.behavior !== "Contiguous")
    throw unsupported(`pre-tokenizer ${step.type}`, KNOWN);
  return step.pattern.String;
}

/** Ids that the post-processor puts before a text. */
function templatePrefix(spec: unknown): number[] {
  const prefix: number[] = [];
  for (const step of steps(spec, "processors")) {
    if (step.type !== "TemplateProcessing") throw unsupported(`post-processor ${step.type}`, KNOWN);
    const at = step.single.findIndex((item: object) => "Sequence" in item);
    if (at !== step.single.length - 1) throw unsupported("a template that appends tokens", KNOWN);
    for (const item of step.single.slice(0, at)) prefix.push(...step.special_tokens[item.SpecialToken.id].ids);
  }
  return prefix;
}
