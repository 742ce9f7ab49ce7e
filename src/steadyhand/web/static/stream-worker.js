// The shared worker with the one stream of a browser. See stream.js and web/live_stream.py.
"use strict";
const maxTopics = 32;
const followers = new Map(); // "port id" -> {port, id, name, after, source}; source: the connection that began for it
const ports = new Map();
let portCount = 0;
let connection = null;
let restartTimer = null;
let pause = 500;

function split(topic) {
  const [name, after] = topic.split(" ");
  return { name, after: Number(after) || 0 };
}

function topics(source) {
  const after = new Map();
  for (const each of [...followers.values()].reverse()) {
    const known = after.get(each.name);
    if (known !== undefined) after.set(each.name, Math.min(known, each.after));
    else if (after.size < maxTopics) after.set(each.name, each.after);
  }
  for (const each of followers.values()) each.source = after.has(each.name) ? source : null;
  return [...after].map(([name, seen]) => `${name} ${seen}`);
}

function restart(milliseconds) {
  clearTimeout(restartTimer);
  restartTimer = setTimeout(connect, milliseconds);
}

async function connect() {
  connection?.abort();
  const own = (connection = new AbortController());
  const wanted = topics(own);
  if (!wanted.length) return;
  try {
    const query = wanted.map((topic) => `on=${encodeURIComponent(topic)}`).join("&");
    const response = await fetch(`/ui/stream?${query}`, {
      signal: own.signal, cache: "no-store", headers: { accept: "text/event-stream" },
    });
    if (response.status === 401) return end();
    if (!response.ok) throw new Error(String(response.status));
    pause = 500;
    await read(response.body.getReader(), own);
  } catch (error) {
    if (own.signal.aborted) return;
  }
  if (connection !== own) return;
  restart(pause);
  pause = Math.min(pause * 2, 30000);
}

async function read(reader, own) {
  const decoder = new TextDecoder();
  let rest = "";
  while (connection === own) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = parts.pop();
    for (const part of parts) deliver(part, own);
  }
}

// A follower that came after the connection began may lack events before this one: the next connection has them all.
function deliver(message, source) {
  const topic = /^id: (.*)$/m.exec(message)?.[1];
  if (!topic) return; // a comment
  const isLive = topic.endsWith(" live");
  const { name, after } = split(topic);
  for (const each of followers.values()) {
    if (each.source !== source || each.name !== name || (after && !isLive && after <= each.after && !message.includes("\nevent: "))) continue;
    each.after = name === "jobs" ? after : Math.max(each.after, after); // changes are numbered anew by each service
    each.port.postMessage({ id: each.id, text: message + "\n\n" });
  }
}

function end() {
  for (const port of ports.keys()) port.postMessage({ ended: true });
  followers.clear();
}

onconnect = ({ ports: [port] }) => {
  const number = ++portCount;
  ports.set(port, number);
  port.onmessage = ({ data }) => {
    if (data.open) {
      followers.set(`${number} ${data.open}`, { port, id: data.open, ...split(data.topic) });
    } else if (data.close) {
      if (!followers.delete(`${number} ${data.close}`)) return;
    } else if (data.bye) {
      ports.delete(port);
      for (const key of [...followers.keys()]) if (key.startsWith(`${number} `)) followers.delete(key);
    }
    restart(20);
  };
};
