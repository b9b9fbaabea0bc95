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
  close(): Promise<void>;
}

/** Serves `roots` (URL prefix to folder). `isolated` sends the two headers that shared memory needs. */
export async function serve(roots: Record<string, string>, isolated: boolean): Promise<TestServer> {
  const requests: string[] = [];
  const replaced = new Map<string, Buffer | null>();
  const unreachable = new Set<string>();
  const server: Server = createServer((request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url!, "http://x").pathname));
    requests.push(path);
    if ([...unreachable].some((prefix) => path.startsWith(prefix))) return void request.socket.destroy();
    if (isolated) {
      response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
      response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
    }
    if (path === "/") return end(response, 200, ".html", Buffer.from(PAGE));
    const other = replaced.get(path);
    if (other === null) return end(response, 404, ".html", Buffer.from("not here"));
    if (other !== undefined) return end(response, 200, extname(path), other);
    for (const [prefix, folder] of Object.entries(roots)) {
      const file = join(folder, path.slice(prefix.length));
      if (path.startsWith(prefix) && existsSync(file) && statSync(file).isFile()) {
        response.setHeader("Content-Type", TYPES[extname(path)] ?? "application/octet-stream");
        return void createReadStream(file).pipe(response);
      }
    }
    return end(response, 404, ".html", Buffer.from("not here"));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    replaced,
    unreachable,
    close: () => new Promise((resolve) => void (server.close(() => resolve()), server.closeAllConnections())),
  };
}

function end(response: ServerResponse, status: number, type: string, body: Buffer): void {
  response.writeHead(status, { "Content-Type": TYPES[type] ?? "application/octet-stream" });
  response.end(body);
}

/** The file with one bit of its middle changed. */
export function damaged(file: string): Buffer {
  const data = readFileSync(file);
  data[data.length >> 1]! ^= 1;
  return data;
}
