/** Tokens that tokenizer.json adds to the model's pieces: they are taken out of a text before it is segmented. */
import { unsupported } from "./tokenizer-spec.js";

export interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  normalized: boolean;
  single_word: boolean;
  lstrip: boolean;
  rstrip: boolean;
}

export function checkPlain(token: AddedToken): void {
  if (token.normalized || token.lstrip || token.rstrip) {
    throw unsupported(`added token ${JSON.stringify(token.content)} with options`, "one that matches as it stands");
  }
}

/** What the library takes for a part of a word. */
const WORD = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]";
const ENDS_WITH_WORD = new RegExp(`${WORD}$`, "u");
const STARTS_WITH_WORD = new RegExp(`^${WORD}`, "u");

/** Whether the token's name at `at` counts: one marked as a single word is text where it touches another. */
function stands(token: AddedToken, text: string, at: number): boolean {
  if (!token.single_word) return true;
  const end = at + token.content.length;
  // Two units are enough for any character.
  return !ENDS_WITH_WORD.test(text.slice(Math.max(at - 2, 0), at)) && !STARTS_WITH_WORD.test(text.slice(end, end + 2));
}

/** Text between added tokens, and the ids of those; of tokens that start at one place, the longest. */
export function* splitAtTokens(text: string, added: readonly AddedToken[]): Generator<string | number> {
  let start = 0;
  for (let at = 0; at < text.length; ) {
    let found: AddedToken | null = null;
    for (const token of added) {
      if (text.startsWith(token.content, at) && token.content.length > (found?.content.length ?? 0)) found = token;
    }
    if (found === null) {
      at++;
      continue;
    }
    if (stands(found, text, at)) {
      if (at > start) yield text.slice(start, at);
      yield found.id;
      start = at + found.content.length;
    }
    at += found.content.length;
  }
  if (start < text.length) yield text.slice(start);
}
