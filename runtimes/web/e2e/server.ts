/** A static server for tests: the built package, exported bundles, and bundles with something wrong with them. */
import { createReadStream, existsSync, readFileSync, statSync } from "node:fs";
import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, join, normalize } from "node:path";

const TYPES: Record<string, string> = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
  ".json": "application/json",
  ".css": "text/css",
  ".svg": "image/svg+xml",
  ".png": "image/png",
  ".webmanifest": "application/manifest+json",
};

/** Has the package as `web` once it is loaded. */
const PAGE = `<!doctype html><meta charset="utf-8"><title>e2e</title>
<script type="module">import * as web from "/dist/index.js"; globalThis.web = web;</script>`;

export interface TestServer {
  url: string;
  /** Paths that were asked for, without the query. */
  requests: string[];
  /** Changes what is served under a path; `null` is 404. */
  replaced: Map<string, Buffer | null>;
  /** Begins of paths whose requests get no answer, as without a network. */
  unreachable: Set<string>;
  /** Paths whose second half comes only when the promise is kept. */
  delays: Map<string, Promise<void>>;
  close(): Promise<void>;
}

/**
 * Serves `roots` (URL prefix to folder, the first that fits). `isolated` sends the two headers that threads need.
 * Under `/` is the test page, unless one of the roots has an index.html there.
 */
export async function serve(roots: Record<string, string>, isolated: boolean, port = 0): Promise<TestServer> {
  const requests: string[] = [];
  const replaced = new Map<string, Buffer | null>();
  const unreachable = new Set<string>();
  const delays = new Map<string, Promise<void>>();
  const server: Server = createServer((request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url!, "http://x").pathname));
    requests.push(path);
    if ([...unreachable].some((prefix) => path.startsWith(prefix))) return void request.socket.destroy();
    if (isolated) {
      response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
      response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
    }
    const other = replaced.get(path);
    if (other === null) return end(response, 404, ".html", Buffer.from("not here"));
    if (other !== undefined) return end(response, 200, extname(path), other);
    for (const [prefix, folder] of Object.entries(roots)) {
      const file = join(folder, path === "/" ? "index.html" : path.slice(prefix.length));
      if (path.startsWith(prefix) && existsSync(file) && statSync(file).isFile()) {
        response.setHeader("Content-Type", TYPES[extname(file)] ?? "application/octet-stream");
        const delay = delays.get(path);
        return delay ? void halting(response, file, delay) : void createReadStream(file).pipe(response);
      }
    }
    if (path === "/") return end(response, 200, ".html", Buffer.from(PAGE));
    return end(response, 404, ".html", Buffer.from("not here"));
  });
  await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    replaced,
    unreachable,
    delays,
    close: () => new Promise((resolve) => void (server.close(() => resolve()), server.closeAllConnections())),
  };
}

function end(response: ServerResponse, status: number, type: string, body: Buffer): void {
  response.writeHead(status, { "Content-Type": TYPES[type] ?? "application/octet-stream" });
  response.end(body);
}

async function halting(response: ServerResponse, file: string, delay: Promise<void>): Promise<void> {
  const data = readFileSync(file);
  response.write(data.subarray(0, data.length >> 1));
  await delay;
  response.end(data.subarray(data.length >> 1));
}

/** The file with one bit of its middle changed. */
export function damaged(file: string): Buffer {
  const data = readFileSync(file);
  data[data.length >> 1]! ^= 1;
  return data;
}
