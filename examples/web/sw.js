// Keeps the page for use without a network. files.js, written by build.py, names the files and their version:
// a new version is fetched whole and takes over when the last tab of the old one is closed.
importScripts("files.js");
const CACHE = `magtiles-seg-${VERSION}`;

self.addEventListener("install", (event) => event.waitUntil(
  caches.open(CACHE).then((cache) => cache.addAll(FILES.map((file) => new Request(file, { cache: "no-cache" }))))));

self.addEventListener("activate", (event) => event.waitUntil((async () => {
  for (const name of await caches.keys()) if (name.startsWith("magtiles-seg-") && name !== CACHE) await caches.delete(name);
  await self.clients.claim();
})()));

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && request.url.startsWith(self.registration.scope)) event.respondWith(answer(request));
});

async function answer(request) {
  const cache = await caches.open(CACHE);
  let found = await cache.match(request);
  if (!found) {
    found = await fetch(request);
    if (found.status === 200 && request.url.includes("/ort-")) await cache.put(request, found.clone()); // WebGPU's files
  }
  const headers = new Headers(found.headers); // isolated from other origins, a page may use threads
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Content-Security-Policy", POLICY); // for the workers, too
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}
