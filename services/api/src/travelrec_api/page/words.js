/** What the page says of a request, and of times. */

const STATE_WORDS = {
  looking: "Looking it up…",
  accepted: "Accepted. It is safe now: you can close this page and come back.",
  pending: "Working on it. This page follows along by itself.",
};
export const LABELS = {
  looking: "Looking it up",
  accepted: "Accepted",
  pending: "Working",
  completed: "Done",
  failed: "Failed",
  cancelled: "Cancelled",
  unknown: "Not found",
};

export function titleOf({ uid, country: where, season }) {
  return where && season ? `${where} in ${season}` : `Request ${uid.slice(0, 8)}…`;
}

export const titleMark = (status) =>
  ({ completed: "✓ ", failed: "✕ ", accepted: "… ", pending: "… " })[status] ?? "";

export function stateText({ status, error, message }) {
  if (status === "failed") return [error && `${error}.`, message].filter(Boolean).join(" ");
  if (status === "cancelled") return message;
  if (status === "unknown") return message || "The service does not know this uid.";
  return STATE_WORDS[status] ?? ""; // a completed request speaks for itself
}

export function dateOf(ms) {
  const date = new Date(ms);
  const isToday = date.toDateString() === new Date().toDateString();
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return isToday
    ? `today at ${time}`
    : `on ${date.toLocaleDateString([], { day: "numeric", month: "long", year: "numeric" })} at ${time}`;
}

export function span(ms) {
  if (ms === undefined || ms === null || ms < 0) return "";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const minutes = Math.floor(ms / 60_000);
  return minutes < 60
    ? `${minutes} min ${Math.floor((ms % 60_000) / 1000)} s`
    : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
