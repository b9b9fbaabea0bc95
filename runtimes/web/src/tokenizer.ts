/**
 * Helium's tokenizer: Unigram with byte fallback, `<s>` first. Encodes and decodes as `helium_onnx/tokenizer.py` does,
 * that is, as the `tokenizers` library, but for two things: control tokens that a user typed are text, and bytes that
 * are no character become U+FFFD without ending the stream.
 */
import { checkPlain, splitAtTokens, type AddedToken } from "./added-tokens.js";
import { HeliumError } from "./errors.js";
import { KNOWN, normalizer, splitPattern, steps, templatePrefix, unsupported, type Step } from "./tokenizer-spec.js";

/** What the library takes off the lowest score of the vocabulary for a character that is in no piece. */
const UNKNOWN_PENALTY = 10;
const BYTE_PIECE = /^<0x([0-9A-F]{2})>$/;

interface Node {
  next: Map<number, Node>;
  id: number;
}

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
  /** Of the pieces that a user's text is made of; names of control tokens and of bytes are not among them. */
  readonly #trie: Node = { next: new Map(), id: -1 };
  /** Of all pieces: for text in which those names count. Made when first needed. */
  #wholeTrie: Node | null = null;
  readonly #added: AddedToken[];
  readonly #control: AddedToken[];
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
      this.#control = added.filter((token) => token.special);
      this.#added.forEach(checkPlain);
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
        if (!this.#special.has(id) && !this.#byteOf.has(id) && id !== this.#unkId) {
          insert(this.#trie, this.#pieces[id]!, id);
        }
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
   * Token ids of `text`, after `<s>`. `parseSpecial` lets `</s>` and other control tokens in `text` count as such: only
   * for text that no user wrote. Throws a PromptError where `text` is no string, holds a lone surrogate, or gives no
   * token at all.
   */
  encode(text: string, parseSpecial = false): number[] {
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
    if (parseSpecial) this.#control.forEach(checkPlain);
    const trie = parseSpecial ? this.#whole() : this.#trie;
    for (const part of splitAtTokens(text, parseSpecial ? [...this.#added, ...this.#control] : this.#added)) {
      if (typeof part === "number") ids.push(part);
      else for (const section of this.#sections(this.#normalize(part))) this.#viterbi(trie, section, ids);
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

  #whole(): Node {
    if (this.#wholeTrie === null) {
      this.#wholeTrie = { next: new Map(), id: -1 };
      for (let id = 0; id < this.#scores.length; id++) insert(this.#wholeTrie, this.#pieces[id]!, id);
    }
    return this.#wholeTrie;
  }

  /** The pre-tokenizer: runs of the split pattern apart from the rest ("Contiguous"). */
  #sections(text: string): string[] {
    const pattern = this.#split;
    if (pattern === null || !text.includes(pattern)) return [text];
    const escaped = pattern.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    return text.split(new RegExp(`((?:${escaped})+)`, "u")).filter((section) => section !== "");
  }

  /** The best segmentation of `text`, its ids appended to `ids`; characters in no piece as their bytes. */
  #viterbi(trie: Node, text: string, ids: number[]): void {
    const size = text.length; // UTF-16 units: pieces begin and end between characters all the same
    const best = new Float64Array(size + 1);
    const from = new Int32Array(size + 1).fill(-1);
    const chosen = new Int32Array(size + 1);
    for (let start = 0; start < size; ) {
      const width = text.codePointAt(start)! > 0xffff ? 2 : 1;
      let single = false;
      let node: Node | undefined = trie;
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
      const unknown = text.slice(start, path[index]![2]);
      const bytes = [...encoder.encode(unknown)].map((byte) => this.#byteIds[byte]);
      if (trie === this.#wholeTrie && unknown === this.#pieces[this.#unkId])
        ids.push(this.#unkId); // its own name
      else if (bytes.every((known) => known !== undefined)) ids.push(...(bytes as number[]));
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

function insert(trie: Node, piece: string, id: number): void {
  let node = trie;
  for (let i = 0; i < piece.length; i++) {
    const unit = piece.charCodeAt(i);
    let child = node.next.get(unit);
    if (!child) node.next.set(unit, (child = { next: new Map(), id: -1 }));
    node = child;
  }
  node.id = id;
}

const encoder = new TextEncoder();
