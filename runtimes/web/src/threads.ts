import { HeliumError } from "./errors.js";

/** Above this many, a step of one token gains nothing and loses time to waiting. */
const MOST = 8;

export interface Machine {
  /** Whether the page is cross-origin isolated and so may share memory between workers. */
  isolated: boolean;
  cores: number;
}

/** How many threads to compute with, and why only one, where that was not asked for. Throws a UsageError. */
export function chooseThreads(asked: number | null, machine: Machine): { threads: number; reason: string | null } {
  if (asked !== null && (!Number.isSafeInteger(asked) || asked < 1)) {
    throw new HeliumError("UsageError", "threads has a value that it cannot have", {
      found: asked,
      expected: "an integer >= 1",
    });
  }
  if (asked === 1) return { threads: 1, reason: null };
  if (!machine.isolated) {
    return {
      threads: 1,
      reason:
        "1 thread: the page is not cross-origin isolated, so it has no SharedArrayBuffer; serve it with " +
        "Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp",
    };
  }
  const threads = asked ?? Math.min(machine.cores, MOST);
  return { threads, reason: threads === 1 ? "1 thread: the browser reports one core" : null };
}
