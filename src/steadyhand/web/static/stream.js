// All tabs of a browser share one stream, since a browser opens six connections to a host and no more.
//
// htmx reads an event stream with fetch. Requests for /ui/stream are answered here by a shared worker, which has the one
// connection; a browser without shared workers opens a connection for each tab.
(() => {
  "use strict";
  const path = "/ui/stream";
  const nativeFetch = window.fetch.bind(window);
  const address = document.querySelector('meta[name="stream-worker"]')?.content;
  const streams = new Map();
  const policy = window.trustedTypes?.createPolicy("steadyhand", { createScriptURL: (url) => url });
  let port = null;
  let count = 0;

  function open() {
    if (port || !address || !window.SharedWorker) return port;
    try {
      const worker = new SharedWorker(policy ? policy.createScriptURL(address) : address, { name: address });
      worker.addEventListener("error", () => { port = null; closeAll(); });
      port = worker.port;
    } catch {
      return null;
    }
    port.addEventListener("message", ({ data }) => {
      if (data.ended) location.assign("/ui/sign-in?next=" + encodeURIComponent(location.pathname + location.search));
      else streams.get(data.id)?.enqueue(new TextEncoder().encode(data.text));
    });
    port.start();
    return port;
  }

  function closeAll() {
    for (const controller of streams.values()) {
      try { controller.close(); } catch { /* it was closed before */ }
    }
    streams.clear();
  }

  function follow(url, init) {
    const headers = new Headers(init?.headers);
    const topic = headers.get("last-event-id") || url.searchParams.get("on");
    const id = ++count;
    const end = () => { streams.delete(id); port?.postMessage({ close: id }); };
    const body = new ReadableStream({
      start(controller) {
        streams.set(id, controller);
        init?.signal?.addEventListener("abort", () => {
          if (streams.has(id)) { end(); controller.error(new DOMException("aborted", "AbortError")); }
        });
        port.postMessage({ open: id, topic });
      },
      cancel: end,
    });
    return Promise.resolve(new Response(body, { headers: { "content-type": "text/event-stream" } }));
  }

  window.fetch = (input, init) => {
    const url = new URL(typeof input === "string" ? input : input.url ?? input, location.href);
    if (url.origin === location.origin && url.pathname === path && open()) return follow(url, init);
    return nativeFetch(input, init);
  };

  window.addEventListener("pagehide", () => {
    port?.postMessage({ bye: true });
    port = null;
    closeAll(); // htmx opens them again if the page comes back
  });
})();
