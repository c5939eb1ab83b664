/** Talks to the API. Every function answers with what happened, as `{kind, …}`, and never throws. */

const PATH = "/recommendations";
const PATIENCE_MS = 20_000;
const BUSY = new Set([429, 502, 503, 504]);
const UID = /^[0-9a-f]{32}$/;

export const ENDED = new Set(["completed", "failed", "cancelled"]);

export const isUid = (text) => UID.test(text);

export const eventsAddress = (uid) => `${PATH}/events?${new URLSearchParams({ uid })}`;

/** When a uid was made, by the server's clock: a UUIDv7 starts with the milliseconds since 1970. */
export const madeAt = (uid) => Number.parseInt(uid.slice(0, 12), 16);

/** A key for one request of the user's, so that sending it again never asks for it twice. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // unlike randomUUID, works over plain HTTP too
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const ask = (country, season, key, signal) =>
  call("POST", { country, season }, { headers: { "Idempotency-Key": key }, signal });

export const read = (uid, { waitS = 0, signal } = {}) =>
  call("GET", waitS ? { uid, wait: waitS } : { uid }, { signal, patienceMs: PATIENCE_MS + waitS * 1000 });

export const cancel = (uid) => call("DELETE", { uid });

async function call(method, params, { headers = {}, signal, patienceMs = PATIENCE_MS } = {}) {
  const gaveUp = new AbortController();
  const giveUp = () => gaveUp.abort();
  const timer = setTimeout(giveUp, patienceMs);
  signal?.addEventListener("abort", giveUp);
  try {
    const response = await fetch(`${PATH}?${new URLSearchParams(params)}`, {
      method,
      headers: { Accept: "application/json", ...headers },
      cache: "no-store",
      signal: gaveUp.signal,
    });
    const text = await response.text();
    return judge(response, parse(text));
  } catch {
    return signal?.aborted ? { kind: "aborted" } : { kind: "unreachable" };
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", giveUp);
  }
}

function judge(response, body) {
  const said = { title: body?.error ?? "", message: body?.message ?? "" };
  if (response.ok && body?.uid) return { kind: "ok", body, traceId: traceId(response) };
  if (response.status === 404) return { kind: "unknown", ...said };
  if (response.status === 422) return { kind: "invalid", details: body?.details ?? [], ...said };
  if (BUSY.has(response.status)) return { kind: "busy", retryAfterS: retryAfter(response), ...said };
  return {
    kind: "problem",
    title: said.title || `The service answered with ${response.status}`,
    message:
      said.message || "That was not expected. Try again; if it stays so, tell whoever runs the service.",
  };
}

/** Of the request that was answered, where the service is traced. */
const traceId = (response) => response.headers.get("traceresponse")?.split("-")[1];

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // a proxy's own page, for example
  }
}

function retryAfter(response) {
  const said = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  return said > 0 ? Math.min(said, 120) : null;
}
