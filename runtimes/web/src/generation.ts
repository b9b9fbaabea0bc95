/** One prompt's continuation: token by token from logits, until something ends it. */
import type { Engine } from "./engine.js";
import { HeliumError } from "./errors.js";
import { checkedSampling, Sampler, type CheckedSampling, type SamplingOptions } from "./sampling.js";
import { StopStrings } from "./stopping.js";
import type { Tokenizer } from "./tokenizer.js";

export interface GenerationOptions extends SamplingOptions {
  /** Tokens to generate at most; 128. */
  maxNewTokens?: number;
  /** One stop string or several; they are no part of the text. */
  stop?: string | readonly string[];
  /** Go on after the eos token; false. */
  ignoreEos?: boolean;
  /** Let `</s>` and other control tokens in the prompt count as such: only for text that no user wrote; false. */
  parseSpecial?: boolean;
}

/** `eos`: the model ended the text. `stop`: a stop string did. `length`: maxNewTokens. `interrupted`: the caller. */
export type FinishReason = "eos" | "stop" | "length" | "interrupted";

export interface GenerationResult {
  /** Without the prompt, the eos token and the stop string. */
  text: string;
  /** Every token generated, the eos and those of a stop string included. */
  tokenIds: number[];
  finishReason: FinishReason;
  /** The stop string that ended the text. */
  stop: string | null;
  promptTokens: number;
  /** In use, also where the options left it open; null where nothing was drawn. */
  seed: bigint | null;
  statistics: Statistics;
}

/** Times are wall-clock seconds. */
export interface Statistics {
  timeToFirstTokenSeconds: number;
  prefillTokensPerSecond: number;
  /** Over the steps after the first token; 0 where there was none. */
  decodeTokensPerSecond: number;
  totalSeconds: number;
}

export interface Request {
  promptIds: number[];
  maxNewTokens: number;
  stop: string[];
  ignoreEos: boolean;
  sampling: CheckedSampling;
}

/** Check everything that can be checked before the model runs. Throws UsageError, PromptError, ContextOverflowError. */
export function checkedRequest(
  tokenizer: Tokenizer,
  contextLength: number,
  prompt: string,
  options: GenerationOptions,
): Request {
  const { maxNewTokens = 128, stop = [], ignoreEos = false, parseSpecial = false } = options;
  const sampling = checkedSampling(options);
  if (!Number.isSafeInteger(maxNewTokens) || maxNewTokens < 1) {
    throw new HeliumError("UsageError", "maxNewTokens has a value that it cannot have", {
      found: maxNewTokens,
      expected: "an integer >= 1",
    });
  }
  const strings = typeof stop === "string" ? [stop] : [...stop];
  new StopStrings(strings); // throws
  const promptIds = tokenizer.encode(prompt, parseSpecial);
  const room = contextLength - promptIds.length;
  if (maxNewTokens > room) {
    throw new HeliumError("ContextOverflowError", "The prompt and the new tokens do not fit the context", {
      found: `${promptIds.length} prompt tokens and maxNewTokens ${maxNewTokens}`,
      expected: `a sum of at most ${contextLength}`,
      remedy: room < 1 ? "shorten the prompt" : `maxNewTokens ${room} would fit, or shorten the prompt`,
    });
  }
  return { promptIds, maxNewTokens, stop: strings, ignoreEos, sampling };
}

/**
 * Run a request, calling `onText` with each piece of text as it becomes certain. `pause` is awaited before each step;
 * once `signal` is aborted the text ends as `interrupted`, and what there is is the result.
 */
export async function generate(
  engine: Engine,
  tokenizer: Tokenizer,
  request: Request,
  onText: (piece: string) => void,
  signal: AbortSignal,
  pause: () => Promise<void>,
): Promise<GenerationResult> {
  const { promptIds, sampling } = request;
  const begun = performance.now();
  const sampler = new Sampler(sampling);
  const stream = tokenizer.stream(promptIds);
  const stop = new StopStrings(request.stop);
  const ends = request.ignoreEos ? [] : tokenizer.eosTokenIds;
  const history = [...promptIds];
  let text = "";
  let reason: FinishReason | null = null;
  let first = 0;
  const show = (piece: string): void => {
    text += piece;
    if (piece !== "") onText(piece);
  };
  const pauseOrStop = async (): Promise<void> => {
    await pause();
    if (signal.aborted) throw new Interrupted();
  };

  engine.length = 0;
  let next: readonly number[] = promptIds;
  try {
    while (reason === null) {
      await pauseOrStop();
      const id = sampler.sample(await engine.run(next, pauseOrStop), history);
      first ||= performance.now();
      history.push(id);
      next = [id];
      if (ends.includes(id)) reason = "eos";
      else {
        show(stop.push(stream.push(id)));
        if (stop.match !== null) reason = "stop";
        else if (history.length === promptIds.length + request.maxNewTokens) reason = "length";
      }
    }
  } catch (error) {
    if (!(error instanceof Interrupted)) throw error;
    reason = "interrupted";
  }
  show(stop.finish()); // an open match wins
  const ended = performance.now();
  const count = history.length - promptIds.length;
  return {
    text,
    tokenIds: history.slice(promptIds.length),
    finishReason: stop.match === null ? reason : "stop",
    stop: stop.match,
    promptTokens: promptIds.length,
    seed: sampling.temperature === 0 ? null : sampling.seed,
    statistics: {
      timeToFirstTokenSeconds: first && (first - begun) / 1000,
      prefillTokensPerSecond: first && (promptIds.length * 1000) / (first - begun),
      decodeTokensPerSecond: count > 1 ? ((count - 1) * 1000) / (ended - first) : 0,
      totalSeconds: (ended - begun) / 1000,
    },
  };
}

/** How `pause` leaves a prompt in its middle. */
class Interrupted extends Error {}
