// What goes between page and server. The token never goes into an address.

const KEY = "zerosweep-token";
const RETRY_MS = [500, 1000, 2000, 5000];

export class Refused extends Error {
  constructor(status, kind, message) {
    super(message);
    this.status = status;
    this.kind = kind;
  }
}

export function token() {
  return sessionStorage.getItem(KEY);
}

export function keepToken(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

function headers() {
  return token() ? { Authorization: `Bearer ${token()}` } : {};
}

async function refused(response) {
  const { error } = await response.json().catch(() => ({}));
  return new Refused(response.status, error?.kind ?? "server",
    error?.message ?? `the server answered ${response.status}`);
}

export async function get(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw await refused(response);
  return response.json();
}

export async function post(path, body) {
  const more = body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await fetch(path, {
    method: "POST",
    headers: { ...headers(), ...more },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!response.ok) throw await refused(response);
  return response.json();
}

// Server-sent events by fetch, because EventSource sends no token. Comes back when it breaks.
export function follow(path, onEvent, onState) {
  const stop = new AbortController();
  run(path, onEvent, onState, stop.signal);
  return () => stop.abort();
}

async function run(path, onEvent, onState, signal) {
  for (let tries = 0; !signal.aborted; tries += 1) {
    try {
      const response = await fetch(path, { headers: headers(), signal });
      if (!response.ok) throw await refused(response);
      onState("live");
      tries = -1;
      await read(response.body, onEvent);
      throw new Error("the server ended the stream");
    } catch (error) {
      if (signal.aborted) return;
      onState("lost", error);
      if (error.status === 401) return;
    }
    const pause = RETRY_MS[Math.min(Math.max(tries, 0), RETRY_MS.length - 1)];
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

async function read(body, onEvent) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      event(text.slice(0, end), onEvent);
      text = text.slice(end + 2);
    }
  }
}

function event(block, onEvent) {
  let name = "message";
  let data = "";
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data += line.slice(5).trimStart();
  }
  if (data) onEvent(name, JSON.parse(data));
}
