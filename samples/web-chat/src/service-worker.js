// Keeps the page for later visits without a network. The build puts two constants before it: VERSION, which changes
// with any file, and FILES, what the page needs, relative to this script. The model is kept by @helium-onnx/web.
const PREFIX = "page-";
const CACHE = PREFIX + VERSION;

addEventListener("install", (event) => {
  const requests = FILES.map((file) => new Request(file, { cache: "no-cache" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(requests)));
});

// A new version comes to this point only when no page of the old one is open: no text vanishes under its reader.
addEventListener("activate", (event) => {
  const isOld = (name) => name.startsWith(PREFIX) && name !== CACHE;
  event.waitUntil(caches.keys().then((names) => Promise.all(names.filter(isOld).map((name) => caches.delete(name)))));
});

addEventListener("fetch", (event) => {
  const { request } = event;
  const [scope, url] = [registration.scope, request.url.split(/[?#]/)[0]];
  if (request.method !== "GET" || !url.startsWith(scope) || url.startsWith(`${scope}model/`)) return;
  event.respondWith(answer(request, url === scope ? `${scope}index.html` : url));
});

/** The kept one, with the headers that it came with; else the network's, of which ONNX Runtime's files are kept. */
async function answer(request, url) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(url);
  if (kept) return kept;
  const response = await fetch(request);
  const isRuntime = response.ok && /\/assets\/ort\b/.test(url);
  if (isRuntime) await cache.put(url, response.clone()).catch(() => undefined); // the browser may have no room
  return response;
}
