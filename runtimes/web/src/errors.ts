/**
 * Every error that a user can cause. As in Python, a message says what was found, what was expected and the remedy.
 *
 * An error crosses the worker's border as plain data and is made anew from it, so `instanceof` holds on both sides.
 */

export type ErrorKind =
  /** A bundle cannot be read, or not by this runtime. */
  | "BundleError"
  /** A file of the bundle is missing, changed or not what the manifest says. */
  | "IntegrityError"
  /** A file cannot be fetched. */
  | "DownloadError"
  /** tokenizer.json is malformed or is none of Helium's. */
  | "TokenizerError"
  /** The prompt is not text that can be tokenized. */
  | "PromptError"
  /** Prompt and new tokens do not fit the context. */
  | "ContextOverflowError"
  /** The model gave logits that are not numbers, or was closed. */
  | "GenerationError"
  /** The browser lacks what is needed. */
  | "ProviderError"
  /** Too little memory. */
  | "ResourceError"
  /** An option has a value that it cannot have. */
  | "UsageError";

export interface ErrorParts {
  found?: unknown;
  expected?: string;
  remedy?: string;
}

export interface PlainError {
  kind: ErrorKind;
  what: string;
  found: string | null;
  expected: string | null;
  remedy: string | null;
}

/** The one class of this package's errors; `kind` tells them apart. */
export class HeliumError extends Error {
  override readonly name: string;
  readonly kind: ErrorKind;
  /** One sentence in the field's words; `message` is the whole text. */
  readonly what: string;
  readonly found: string | null;
  readonly expected: string | null;
  readonly remedy: string | null;

  constructor(kind: ErrorKind, what: string, parts: ErrorParts = {}) {
    const found = parts.found === undefined || parts.found === null ? null : String(parts.found);
    const lines = [what];
    if (found !== null) lines.push(`  found:    ${found}`);
    if (parts.expected) lines.push(`  expected: ${parts.expected}`);
    if (parts.remedy) lines.push(`  remedy:   ${parts.remedy}`);
    super(lines.join("\n"));
    this.name = kind;
    this.kind = kind;
    this.what = what;
    this.found = found;
    this.expected = parts.expected ?? null;
    this.remedy = parts.remedy ?? null;
  }

  toPlain(): PlainError {
    return { kind: this.kind, what: this.what, found: this.found, expected: this.expected, remedy: this.remedy };
  }

  static fromPlain(plain: PlainError): HeliumError {
    return new HeliumError(plain.kind, plain.what, {
      ...(plain.found === null ? {} : { found: plain.found }),
      ...(plain.expected === null ? {} : { expected: plain.expected }),
      ...(plain.remedy === null ? {} : { remedy: plain.remedy }),
    });
  }
}

/** The text of anything that was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
