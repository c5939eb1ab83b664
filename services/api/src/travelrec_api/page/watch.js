/** Follows one request until it ends: by its event stream, and by asking again when the stream breaks. */

import { ENDED, eventsAddress, read } from "/static/api.js";

const FIRST_EVENT_MS = 5_000; // the present state comes at once; silence means that something on the way holds it back
const RECHECK_MS = 30_000; // a connection that died without a word is noticed by then
const STEADY_MS = 10_000; // a stream that lived this long was no failure of streaming as such
const STREAMS_TO_TRY = 3;
const LONG_POLL_S = 20;
const SPACING_MS = 1_000;
const SLOWEST_MS = 15_000;

/**
 * Calls `onState(body)` for each state that the server tells and `onTrouble({inMs, message})` while it can't be
 * asked; `onTrouble(null)` when it answers again. Ends with a state that is final, with `unknown`, or on `signal`.
 * An event `now` on `nudges` cuts a pause short. What is not `isNew` has perhaps ended long ago, or never was: it is
 * read before a stream is opened.
 */
export async function watch(uid, { isNew, onState, onTrouble, signal, nudges }) {
  let brokenStreams = 0;
  let silentReads = 0;
  let readFirst = !isNew;
  while (!signal.aborted) {
    if (!readFirst && brokenStreams < STREAMS_TO_TRY) {
      const { ended, livedMs } = await stream(uid, { onState, onTrouble, signal });
      if (ended || signal.aborted) return;
      brokenStreams = livedMs > STEADY_MS ? 0 : brokenStreams + 1;
    }
    readFirst = false;
    const polling = brokenStreams >= STREAMS_TO_TRY;
    const answer = await read(uid, { waitS: polling ? LONG_POLL_S : 0, signal });
    if (answer.kind === "ok") {
      silentReads = 0;
      onTrouble(null);
      onState(answer.body);
      if (ENDED.has(answer.body.status)) return;
      if (polling) await pause(SPACING_MS, { signal, nudges });
    } else if (answer.kind === "unknown" || answer.kind === "invalid") {
      onTrouble(null);
      onState({ uid, status: "unknown", message: answer.message });
      return;
    } else if (answer.kind !== "aborted") {
      silentReads += 1;
      brokenStreams = 0; // it was the service, not the streaming
      const inMs = (answer.retryAfterS ?? 0) * 1000 || Math.min(1000 * 2 ** (silentReads - 1), SLOWEST_MS);
      onTrouble({ inMs, message: answer.message });
      await pause(inMs, { signal, nudges });
    }
  }
}

/** One stream, to its end: did the request end with it, and how long did it live? */
function stream(uid, { onState, onTrouble, signal }) {
  return new Promise((resolve) => {
    const startedAt = performance.now();
    const source = new EventSource(eventsAddress(uid));
    const finish = (ended) => {
      source.close();
      clearTimeout(silence);
      clearInterval(recheck);
      signal.removeEventListener("abort", broken);
      resolve({ ended, livedMs: performance.now() - startedAt });
    };
    const broken = () => finish(false);
    const heard = (body) => {
      clearTimeout(silence);
      onTrouble(null);
      onState(body);
      if (ENDED.has(body.status)) finish(true);
    };
    const silence = setTimeout(broken, FIRST_EVENT_MS);
    const recheck = setInterval(async () => {
      const answer = await read(uid, { signal });
      if (source.readyState === EventSource.CLOSED) return;
      if (answer.kind === "ok" && ENDED.has(answer.body.status)) heard(answer.body);
      else if (answer.kind !== "ok") broken();
    }, RECHECK_MS);
    for (const name of ["pending", ...ENDED]) {
      source.addEventListener(name, (event) => heard({ ...JSON.parse(event.data), status: name }));
    }
    source.addEventListener("error", broken);
    signal.addEventListener("abort", broken);
  });
}

/** Waits; sooner when `signal` ends it, `nudges` says `now`, or the browser is back on a network. */
export function pause(ms, { signal, nudges }) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      nudges.removeEventListener("now", done);
      window.removeEventListener("online", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
    nudges.addEventListener("now", done);
    window.addEventListener("online", done);
    if (signal.aborted) done();
  });
}
