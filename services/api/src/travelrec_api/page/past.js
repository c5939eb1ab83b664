/** The last requests, remembered in this browser: `{uid, country, season, status, askedAt, tookMs, traceId}`, newest first. */

import { isUid } from "/static/api.js";

const KEY = "travelrec.requests";
const MOST = 10;

export function all() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return kept.filter((one) => isUid(one?.uid)).slice(0, MOST);
  } catch {
    return []; // storage is off, full of something else, or not ours: a page without memory still works
  }
}

export const find = (uid) => all().find((one) => one.uid === uid);

/** Adds the request at the top, or changes what is known of it where it stands. */
export function remember(changed) {
  const kept = all();
  const at = kept.findIndex((one) => one.uid === changed.uid);
  if (at < 0) kept.unshift(changed);
  else kept[at] = { ...kept[at], ...changed };
  save(kept.slice(0, MOST));
}

export const forgetAll = () => save([]);

/** Calls `listener` when another tab changes the list. */
export const onChangeElsewhere = (listener) =>
  window.addEventListener("storage", (event) => event.key === KEY && listener());

function save(kept) {
  try {
    localStorage.setItem(KEY, JSON.stringify(kept));
  } catch {
    // as above
  }
}
