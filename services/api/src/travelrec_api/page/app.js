/** The page: the form, the request that is shown, and the list of the last ones. */

import { ENDED, cancel, isUid, madeAt, read } from "/static/api.js";
import { askAgain, startForm } from "/static/form.js";
import { clearNotice, notice } from "/static/notices.js";
import { $, announce, button, element, icon } from "/static/parts.js";
import * as past from "/static/past.js";
import { watch } from "/static/watch.js";
import { LABELS, dateOf, span, stateText, titleMark, titleOf } from "/static/words.js";

const RECHECK_PAST_MS = 10_000;
const nudges = new EventTarget();

/**
 * The request on show: `{uid, country, season, status, askedAt, traceId, acceptedMs, tookMs, isLive,
 * recommendations, error, message}`; `isLive` once this page has seen it before its end, so that it knows how long it took.
 */
let shown = null;
let stopShown = new AbortController();

/* ---------- the request on show ---------- */

function accepted({ uid, country, season, askedAt, traceId }) {
  past.remember({ uid, country, season, askedAt, traceId, status: "accepted" });
  history.pushState({ uid }, "", `/?uid=${uid}`);
  const acceptedMs = Date.now() - askedAt;
  show({ uid, country, season, askedAt, traceId, status: "accepted", acceptedMs, isLive: true });
  goToRequest();
}

function show(request) {
  stopShown.abort();
  stopShown = new AbortController();
  shown = request;
  clearNotice($("watch-problem"));
  render();
  announceState();
  if (!ENDED.has(request.status)) follow(request, stopShown.signal);
}

function follow({ uid, isLive }, signal) {
  return watch(uid, {
    isNew: Boolean(isLive),
    signal,
    nudges,
    onState: (body) => !signal.aborted && learn(body),
    onTrouble: (trouble) => !signal.aborted && showTrouble(trouble),
  });
}

function learn(body) {
  const before = shown.status;
  const tookMs =
    ENDED.has(body.status) && !ENDED.has(before) && shown.isLive ? Date.now() - shown.askedAt : shown.tookMs;
  shown = { ...shown, ...body, tookMs, isLive: true };
  if (shown.status !== "unknown" || past.find(shown.uid)) {
    past.remember(pick(shown, ["uid", "country", "season", "status", "askedAt", "tookMs", "traceId"]));
  }
  if (shown.status === before) return;
  const focused = document.activeElement;
  render();
  announceState();
  if (focused.hidden) $("request-title").focus(); // it was on a button that is of no use any more
}

function showTrouble(trouble) {
  if (!trouble) {
    if ($("watch-problem").contains(document.activeElement)) $("request-title").focus();
    clearNotice($("watch-problem"));
    return;
  }
  notice($("watch-problem"), {
    title: "Lost touch with the service",
    message: trouble.message || "The request itself is kept; this page asks again until it hears of it.",
    inMs: trouble.inMs,
    buttons: [["Ask now", () => nudges.dispatchEvent(new Event("now"))]],
  });
}

function open(uid) {
  const known = past.find(uid) ?? {};
  show({ country: null, season: null, askedAt: madeAt(uid), ...known, uid, status: "looking" });
}

/** To the request's title: what a screen reader reads next, and on a phone the top of what there is to see. */
function goToRequest() {
  const isBesideForm = matchMedia("(min-width: 60rem)").matches;
  $("request-title").focus({ preventScroll: true });
  $("request").scrollIntoView({ block: isBesideForm ? "nearest" : "start" });
}

$("cancel").addEventListener("click", async () => {
  const { uid } = shown;
  const { signal } = stopShown;
  const answer = await cancel(uid);
  if (signal.aborted || ENDED.has(shown.status)) return;
  if (answer.kind === "ok") {
    learn(answer.body);
    if (ENDED.has(answer.body.status)) stopShown.abort();
  } else {
    notice($("watch-problem"), {
      title: "It could not be cancelled",
      message: answer.message || "The service can’t be reached. Try again in a moment.",
    });
  }
});

$("again").addEventListener("click", () => askAgain(shown.country, shown.season));

$("copy").addEventListener("click", async () => {
  const done = await copyText($("uid"));
  $("copy").textContent = done ? "Copied" : "Press Ctrl+C";
  announce(done ? "The uid was copied." : "The uid is selected; copy it with your keyboard.");
  setTimeout(() => ($("copy").textContent = "Copy"), 2500);
});

async function copyText(input) {
  try {
    await navigator.clipboard.writeText(input.value); // only there on https and localhost
    return true;
  } catch {
    input.select();
    return document.execCommand("copy");
  }
}

/* ---------- drawing ---------- */

function render() {
  $("empty").hidden = shown !== null;
  $("request").hidden = shown === null;
  document.title = shown
    ? `${titleMark(shown.status)}${titleOf(shown)} · travelrec`
    : "travelrec · three ideas for a trip";
  renderPast();
  if (!shown) return;
  const { status } = shown;
  $("request").dataset.status = status;
  $("request").dataset.season = shown.season ?? "any";
  $("request-icon").setAttribute("href", `#icon-${shown.season ?? "any"}`);
  $("request-title").textContent = titleOf(shown);
  $("request-when").textContent = `Asked ${dateOf(shown.askedAt)}`;
  $("state").textContent = stateText(shown);
  $("state").hidden = !$("state").textContent;
  $("uid").value = shown.uid;
  $("trace").hidden = !shown.traceId;
  $("trace").textContent = shown.traceId ? `trace ${shown.traceId}` : "";
  $("ideas").hidden = status !== "completed";
  $("ideas").replaceChildren(...(shown.recommendations ?? []).map((text) => element("li", text)));
  $("cancel").hidden = !["accepted", "pending"].includes(status);
  $("again").hidden = !(["failed", "cancelled", "unknown"].includes(status) && shown.country && shown.season);
  $("route").hidden = !(status in ROUTE);
  if (status in ROUTE) renderRoute();
}

const ROUTE = {
  accepted: ["done", "now", "ahead"],
  pending: ["done", "now", "ahead"],
  completed: ["done", "done", "done"],
  failed: ["done", "broken", "ahead"],
  cancelled: ["done", "stopped", "ahead"],
};

function renderRoute() {
  const names = { working: { failed: "Failed", cancelled: "Cancelled" }[shown.status] ?? "Working" };
  const notes = {
    accepted: span(shown.acceptedMs),
    done: shown.status === "completed" ? span(shown.tookMs) : "",
  };
  [...$("route").children].forEach((step, index) => {
    const { step: name } = step.dataset;
    step.dataset.state = ROUTE[shown.status][index];
    if (step.dataset.state === "now") step.setAttribute("aria-current", "step");
    else step.removeAttribute("aria-current");
    if (names[name]) step.querySelector(".step-name").textContent = names[name];
    step.querySelector(".step-note").textContent = notes[name] ?? "";
  });
  tick();
}

/** The time that a running request has taken so far, under its step. */
function tick() {
  if (!shown || !["accepted", "pending"].includes(shown.status)) return;
  document.querySelector("[data-step=working] .step-note").textContent = span(Date.now() - shown.askedAt);
}

function announceState() {
  const words = shown.status === "completed" ? shown.recommendations.join(" ") : stateText(shown);
  announce(`${titleOf(shown)}. ${LABELS[shown.status]}. ${words}`);
}

/* ---------- the last requests ---------- */

function renderPast() {
  const kept = past.all();
  $("past-hint").textContent = kept.length
    ? "Remembered in this browser only."
    : "None yet. They are remembered in this browser only.";
  $("forget").hidden = !kept.length;
  const hadFocus =
    $("past-list").contains(document.activeElement) && document.activeElement.getAttribute("href");
  $("past-list").replaceChildren(...kept.map(pastItem));
  if (hadFocus) $("past-list").querySelector(`[href="${hadFocus}"]`)?.focus();
}

function pastItem(one) {
  const link = element("a", "");
  link.href = `/?uid=${one.uid}`;
  link.dataset.season = one.season ?? "any";
  if (one.uid === shown?.uid) link.setAttribute("aria-current", "true");
  const status = element("span", LABELS[one.status] ?? one.status);
  status.className = "chip";
  status.dataset.status = one.status;
  const when = element("span", dateOf(one.askedAt));
  when.className = "past-when";
  link.append(icon(one.season), element("span", titleOf(one)), status, when);
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    visit(one.uid);
  });
  const item = element("li", "");
  item.append(link);
  return item;
}

function visit(uid) {
  if (uid !== shown?.uid) history.pushState({ uid }, "", `/?uid=${uid}`);
  open(uid);
  goToRequest();
}

/** Requests in the list that are not on show and have not ended: how are they now? */
async function recheckPast() {
  if (document.hidden) return;
  for (const one of past.all()) {
    if (ENDED.has(one.status) || one.status === "unknown" || one.uid === shown?.uid) continue;
    const answer = await read(one.uid);
    if (answer.kind === "ok")
      past.remember(pick({ ...one, ...answer.body }, ["uid", "country", "season", "status"]));
    else if (answer.kind === "unknown") past.remember({ uid: one.uid, status: "unknown" });
    else return;
  }
  renderPast();
}

$("forget").addEventListener("click", () => {
  past.forgetAll();
  renderPast();
  $("past-title").focus();
  announce("The list is empty. The requests themselves are not touched.");
});

$("open").addEventListener("submit", (event) => {
  event.preventDefault();
  const uid = $("open-uid").value.trim().toLowerCase().replaceAll("-", "");
  const isGood = isUid(uid);
  $("open-error").hidden = isGood;
  $("open-error").textContent = isGood ? "" : "A uid has 32 digits, each 0–9 or a–f.";
  if (isGood) {
    $("open-uid").value = "";
    $("open-uid").removeAttribute("aria-invalid");
    visit(uid);
  } else {
    $("open-uid").setAttribute("aria-invalid", "true");
    $("open-uid").focus();
  }
});

const pick = (from, names) =>
  Object.fromEntries(names.map((name) => [name, from[name]]).filter(([, value]) => value !== undefined));

/* ---------- start ---------- */

function openAddress() {
  const uid = new URLSearchParams(location.search).get("uid")?.toLowerCase().replaceAll("-", "");
  if (uid && isUid(uid)) return open(uid);
  stopShown.abort();
  shown = uid
    ? {
        uid,
        country: null,
        season: null,
        askedAt: Date.now(),
        status: "unknown",
        message: "This is no uid: it has 32 digits, each 0–9 or a–f.",
      }
    : null;
  return render();
}

window.addEventListener("popstate", openAddress);
past.onChangeElsewhere(renderPast);
document.addEventListener("visibilitychange", recheckPast);
setInterval(recheckPast, RECHECK_PAST_MS);
setInterval(tick, 100);
$("offline-banner").hidden = document.querySelector("meta[name=travelrec-offline-model]").content !== "true";
startForm(accepted);
openAddress();
recheckPast();
