/**
 * Stop strings over text that arrives in pieces: the Aho-Corasick automaton of `helium_onnx/generation/stopping.py`,
 * which reads each character once, and whose result does not depend on where the text was cut.
 */
import { HeliumError } from "./errors.js";

/**
 * Ends a text at the earliest stop string; of those that start there, the longest is the match.
 *
 * `push` gives back text that can no longer be part of a stop string and withholds the longest tail that still may.
 * `match` is set as soon as nothing can change it. Throws a UsageError for a stop string that is empty or no string.
 */
export class StopStrings {
  match: string | null = null;
  readonly #stop: string[];
  #state = 0;
  /** Characters read and not yet given back. */
  #held: string[] = [];
  /** A match that is still open: where it starts in `#held`. */
  #found: { start: number; string: string } | null = null;

  // A state is a prefix of some stop string, 0 the empty one.
  readonly #next: Map<string, number>[] = [new Map()];
  /** The longest proper suffix that is a state. */
  #fail: number[] = [];
  /** The longest stop string that ends in the state. */
  readonly #longest: (string | null)[] = [null];
  /** Length of the longest suffix (itself included) that more text could extend. */
  #openDepth: number[] = [];

  constructor(stop: readonly string[]) {
    for (const string of stop) {
      if (typeof string !== "string" || string === "") {
        throw new HeliumError("UsageError", "A stop string cannot be used", {
          found: JSON.stringify(string),
          expected: "a string of at least one character",
          remedy: "leave it out",
        });
      }
    }
    this.#stop = [...new Set(stop)];
    this.#build();
  }

  push(text: string): string {
    if (this.match !== null) return "";
    if (this.#stop.length === 0) return text;
    let shown = "";
    for (const character of text) {
      this.#held.push(character);
      this.#state = this.#step(this.#state, character);
      this.#consider(this.#longest[this.#state]!);
      const openDepth = this.#openDepth[this.#state]!;
      if (this.#found !== null && this.#found.start < this.#held.length - openDepth) return shown + this.#close();
      while (this.#held.length > openDepth && (this.#found === null || this.#found.start > 0)) {
        shown += this.#held.shift()!;
        if (this.#found !== null) this.#found.start--;
      }
    }
    return shown;
  }

  /** The text has ended: decide an open match and return what was withheld before it, or all without one. */
  finish(): string {
    return this.match === null ? this.#close() : "";
  }

  #consider(string: string | null): void {
    if (string === null) return;
    const start = this.#held.length - [...string].length;
    if (this.#found === null || start <= this.#found.start) this.#found = { start, string };
  }

  #close(): string {
    const text = this.#held.slice(0, this.#found?.start).join("");
    this.match = this.#found?.string ?? null;
    this.#held = [];
    return text;
  }

  #step(state: number, character: string): number {
    while (state !== 0 && !this.#next[state]!.has(character)) state = this.#fail[state]!;
    return this.#next[state]!.get(character) ?? 0;
  }

  #build(): void {
    const depth = [0];
    for (const string of this.#stop) {
      let state = 0;
      for (const character of string) {
        let child = this.#next[state]!.get(character);
        if (child === undefined) {
          child = this.#next.length;
          this.#next[state]!.set(character, child);
          this.#next.push(new Map());
          this.#longest.push(null);
          depth.push(depth[state]! + 1);
        }
        state = child;
      }
      this.#longest[state] = string;
    }
    this.#fail = this.#next.map(() => 0);
    this.#openDepth = this.#next.map(() => 0);
    const queue = [...this.#next[0]!.values()];
    for (let state = queue.shift(); state !== undefined; state = queue.shift()) {
      for (const [character, child] of this.#next[state]!) {
        this.#fail[child] = this.#step(this.#fail[state]!, character);
        queue.push(child);
      }
      const fail = this.#fail[state]!;
      this.#longest[state] ??= this.#longest[fail]!;
      this.#openDepth[state] = this.#next[state]!.size > 0 ? depth[state]! : this.#openDepth[fail]!;
    }
  }
}
