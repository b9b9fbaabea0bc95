/**
 * JSON in the one form that helium.json's digest is made of: sorted keys, no spaces, UTF-8, and numbers as they were
 * written (`1e-08` is not `1e-8` there, so a parsed number would not do).
 */

/** The canonical text of an object without one of its keys. Throws a SyntaxError where `text` is not JSON. */
export function canonicalWithout(text: string, key: string): string {
  JSON.parse(text); // what follows relies on its being JSON
  return new Reader(text).value(key);
}

const TOKEN = /[\s]*("(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+)/y;

class Reader {
  constructor(readonly text: string) {
    TOKEN.lastIndex = 0;
  }

  #token(): string {
    return TOKEN.exec(this.text)![1]!;
  }

  value(without?: string, token = this.#token()): string {
    if (token === "{") {
      const members: [string, string][] = [];
      for (let next = this.#token(); next !== "}"; next = this.#token()) {
        if (next === ",") next = this.#token();
        const key = JSON.parse(next) as string;
        this.#token(); // the colon
        const value = this.value();
        if (key !== without) members.push([key, value]);
      }
      members.sort(([a], [b]) => byCodePoint(a, b));
      return `{${members.map(([key, value]) => `${JSON.stringify(key)}:${value}`).join(",")}}`;
    }
    if (token === "[") {
      const items: string[] = [];
      for (let next = this.#token(); next !== "]"; next = this.#token()) {
        items.push(this.value(undefined, next === "," ? this.#token() : next));
      }
      return `[${items.join(",")}]`;
    }
    // JSON.stringify escapes what Python's json does with ensure_ascii=False; U+007F and above stay as they are.
    return token.startsWith('"') ? JSON.stringify(JSON.parse(token)) : token;
  }
}

function byCodePoint(a: string, b: string): number {
  const [left, right] = [[...a], [...b]];
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    const difference = left[i]!.codePointAt(0)! - right[i]!.codePointAt(0)!;
    if (difference !== 0) return difference;
  }
  return left.length - right.length;
}
