/** The page: the form, the request that is shown, and the list of the last ones. */

import { ENDED, ask, cancel, isUid, madeAt, newKey, read } from "/static/api.js";
import { Combobox, plain } from "/static/combobox.js";
import * as past from "/static/past.js";
import { pause, watch } from "/static/watch.js";

const MOST_SENDS = 6;
const RECHECK_PAST_MS = 10_000;
const STATE_WORDS = {
  sending: "Sending your request…",
  accepted: "Accepted. It is safe now: you can close this page and come back.",
  pending: "Working on it. This page follows along by itself.",
  completed: "Done.",
};
const LABELS = {
  accepted: "Accepted",
  pending: "Working",
  completed: "Done",
  failed: "Failed",
  cancelled: "Cancelled",
  unknown: "Not found",
};

const $ = (id) => document.getElementById(id);
const form = $("ask");
const country = $("country");
const nudges = new EventTarget();

/**
 * The request on show: `{uid, country, season, status, askedAt, acceptedMs, tookMs, isLive, recommendations, error,
 * message}`; `isLive` once this page has seen it before its end, so that it knows how long it took.
 */
let shown = null;
let stopShown = new AbortController();
let stopSending = new AbortController();

const combobox = new Combobox({ input: country, toggle: $("country-toggle"), list: $("country-list"), announce });

/* ---------- sending ---------- */

form.addEventListener("submit", (event) => {
  event.preventDefault();
  combobox.close();
  if (isBusy()) return;
  clearErrors();
  const season = form.elements.season.value;
  if (!season) fieldError("season", "Choose one of the four seasons.");
  if (!country.value.trim()) fieldError("country", "Say where to: type or choose a country.");
  if (!focusFirstError()) send(country.value.trim(), season);
});

country.addEventListener("input", () => clearFieldError("country"));
country.addEventListener("change", () => clearFieldError("country"));
$("season-field").addEventListener("change", () => {
  clearFieldError("season");
  document.body.dataset.season = form.elements.season.value;
});

/** Sends until the service has it, the user stops it, or it makes no sense; the key makes repeats harmless. */
async function send(where, season, key = newKey()) {
  stopSending.abort();
  stopSending = new AbortController();
  const { signal } = stopSending;
  const askedAt = Date.now();
  busy(true);
  announce(STATE_WORDS.sending);
  for (let sends = 1; ; sends += 1) {
    const answer = await ask(where, season, key, signal);
    if (signal.aborted) return;
    const canRetry = answer.kind === "busy" || answer.kind === "unreachable";
    if (!canRetry) {
      busy(false);
      clearNotice($("send-problem"));
      sent(answer, { country: where, season, askedAt });
      return;
    }
    const isLast = sends >= MOST_SENDS;
    const inMs = (answer.retryAfterS ?? 0) * 1000 || Math.min(1000 * 2 ** sends, 15_000);
    notice($("send-problem"), {
      title: answer.kind === "busy" ? "The service can’t take requests right now" : "The service can’t be reached",
      message: answer.message || "Your request was not lost: it is sent again, and never counted twice.",
      inMs: isLast ? null : inMs,
      buttons: [
        ["Try now", () => (isLast ? send(where, season, key) : nudges.dispatchEvent(new Event("now")))],
        ["Stop trying", stopTrying],
      ],
    });
    if (isLast) return busy(false);
    await pause(inMs, { signal, nudges });
    if (signal.aborted) return;
  }
}

function stopTrying() {
  stopSending.abort();
  clearNotice($("send-problem"));
  busy(false);
  $("submit").focus();
  announce("Stopped. Nothing was requested.");
}

function sent(answer, request) {
  if (answer.kind === "ok") {
    const { uid } = answer.body;
    past.remember({ uid, country: request.country, season: request.season, status: "accepted", askedAt: request.askedAt });
    history.pushState({ uid }, "", `/?uid=${uid}`);
    show({ ...request, uid, status: "accepted", acceptedMs: Date.now() - request.askedAt, isLive: true });
    $("request-title").focus({ preventScroll: true });
    $("request").scrollIntoView({ block: "nearest" });
  } else if (answer.kind === "invalid" && answer.details.some(({ field }) => isField(field))) {
    for (const { field, message } of answer.details) if (isField(field)) fieldError(fieldOf(field), message);
    focusFirstError();
  } else {
    notice($("send-problem"), { title: answer.title || "The request was not accepted", message: answer.message });
  }
}

function busy(now) {
  $("submit").setAttribute("aria-disabled", String(now)); // not `disabled`: that would drop the focus
  $("submit").textContent = now ? "Sending…" : "Get three ideas";
}

const isBusy = () => $("submit").getAttribute("aria-disabled") === "true";

/* ---------- what is wrong with a field ---------- */

const fieldOf = (field) => String(field).split(".").pop();
const isField = (field) => ["country", "season"].includes(fieldOf(field));

function fieldError(field, message) {
  const error = $(`${field}-error`);
  error.textContent = message;
  error.hidden = false;
  if (field === "season") return;
  country.setAttribute("aria-invalid", "true");
  const names = namesIn(message);
  $("country-suggestions").hidden = !names.length;
  $("country-suggestions").replaceChildren(...names.map((name) => button(name, () => useCountry(name), "suggestion")));
}

/** The names of countries that a message mentions, the longest first, so that "Guinea-Bissau" is not "Guinea" too. */
function namesIn(message) {
  let rest = ` ${plain(message)} `;
  const found = [];
  for (const name of combobox.names.toSorted((a, b) => b.length - a.length)) {
    const at = rest.indexOf(` ${plain(name)} `);
    if (at < 0) continue;
    found.push({ name, at });
    rest = rest.replace(` ${plain(name)} `, (gone) => ` ${"·".repeat(gone.length - 2)} `);
  }
  return found.sort((a, b) => a.at - b.at).map(({ name }) => name);
}

function useCountry(name) {
  country.value = name;
  clearFieldError("country");
  country.focus();
}

function focusFirstError() {
  const isCountry = !$("country-error").hidden;
  if (isCountry) country.focus();
  else if (!$("season-error").hidden) form.querySelector("[name=season]").focus();
  else return false;
  return true;
}

function clearFieldError(field) {
  $(`${field}-error`).hidden = true;
  $(`${field}-error`).textContent = "";
  if (field === "season") return;
  country.removeAttribute("aria-invalid");
  $("country-suggestions").hidden = true;
}

function clearErrors() {
  clearFieldError("country");
  clearFieldError("season");
  clearNotice($("send-problem"));
}

/* ---------- the request on show ---------- */

function show(request) {
  stopShown.abort();
  stopShown = new AbortController();
  shown = request;
  clearNotice($("watch-problem"));
  render();
  announceState();
  if (!ENDED.has(request.status)) follow(request.uid, stopShown.signal);
}

function follow(uid, signal) {
  return watch(uid, {
    signal,
    nudges,
    onState: (body) => !signal.aborted && learn(body),
    onTrouble: (trouble) => !signal.aborted && showTrouble(trouble),
  });
}

function learn(body) {
  const before = shown.status;
  const tookMs = ENDED.has(body.status) && !ENDED.has(before) && shown.isLive ? Date.now() - shown.askedAt : shown.tookMs;
  shown = { ...shown, ...body, tookMs, isLive: true };
  if (shown.status !== "unknown" || past.find(shown.uid)) {
    past.remember(pick(shown, ["uid", "country", "season", "status", "askedAt", "tookMs"]));
  }
  if (shown.status === before) return;
  const hadFocus = $("actions").contains(document.activeElement);
  render();
  announceState();
  if (hadFocus && document.activeElement === document.body) $("request-title").focus();
}

function showTrouble(trouble) {
  if (!trouble) return clearNotice($("watch-problem"));
  return notice($("watch-problem"), {
    title: "Lost touch with the service",
    message: trouble.message || "The request itself is kept; this page asks again until it hears of it.",
    inMs: trouble.inMs,
    buttons: [["Ask now", () => nudges.dispatchEvent(new Event("now"))]],
  });
}

async function open(uid) {
  const known = past.find(uid) ?? {};
  show({ country: null, season: null, askedAt: madeAt(uid), ...known, uid, status: "accepted" });
}

$("cancel").addEventListener("click", async () => {
  const { uid } = shown;
  const { signal } = stopShown;
  const answer = await cancel(uid);
  if (signal.aborted || ENDED.has(shown.status)) return;
  if (answer.kind === "ok") {
    learn(answer.body);
    $("request-title").focus();
    if (ENDED.has(answer.body.status)) stopShown.abort();
  } else {
    notice($("watch-problem"), {
      title: "It could not be cancelled",
      message: answer.message || "The service can’t be reached. Try again in a moment.",
    });
  }
});

$("again").addEventListener("click", () => {
  country.value = shown.country;
  form.elements.season.value = shown.season;
  document.body.dataset.season = shown.season;
  form.requestSubmit();
});

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
  document.title = shown ? `${titleMark(shown.status)}${titleOf(shown)} · travelrec` : "travelrec · three ideas for a trip";
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
  $("ideas").hidden = status !== "completed";
  $("ideas").replaceChildren(...(shown.recommendations ?? []).map((text) => element("li", text)));
  $("cancel").hidden = ENDED.has(status) || status === "unknown";
  $("again").hidden = !(["failed", "cancelled", "unknown"].includes(status) && shown.country && shown.season);
  $("route").hidden = status === "unknown";
  renderRoute();
}

const ROUTE = {
  accepted: ["done", "now", "ahead"],
  pending: ["done", "now", "ahead"],
  completed: ["done", "done", "done"],
  failed: ["done", "broken", "ahead"],
  cancelled: ["done", "broken", "ahead"],
  unknown: ["ahead", "ahead", "ahead"],
};

function renderRoute() {
  const names = { working: { failed: "Failed", cancelled: "Cancelled" }[shown.status] ?? "Working" };
  const notes = { accepted: span(shown.acceptedMs), done: shown.status === "completed" ? span(shown.tookMs) : "" };
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

function titleOf({ uid, country: where, season }) {
  return where && season ? `${where} in ${season}` : `Request ${uid.slice(0, 8)}…`;
}

const titleMark = (status) => ({ completed: "✓ ", failed: "✕ ", accepted: "… ", pending: "… " })[status] ?? "";

function stateText({ status, error, message, country: where, season }) {
  if (status === "failed") return [error && `${error}.`, message].filter(Boolean).join(" ");
  if (status === "cancelled") return message;
  if (status === "unknown") return message || "The service does not know this uid.";
  if (status === "completed") return where && season ? `Three ideas for ${where} in ${season}.` : STATE_WORDS.completed;
  return STATE_WORDS[status];
}

function announceState() {
  const words = stateText(shown);
  const ideas = shown.status === "completed" ? ` ${shown.recommendations.join(" ")}` : "";
  announce(`${LABELS[shown.status]}. ${words}${ideas}`);
}

function announce(text) {
  $("announcer").textContent = text;
}

function dateOf(ms) {
  const date = new Date(ms);
  const isToday = date.toDateString() === new Date().toDateString();
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return isToday ? `today at ${time}` : `on ${date.toLocaleDateString([], { day: "numeric", month: "long", year: "numeric" })} at ${time}`;
}

function span(ms) {
  if (ms === undefined || ms === null || ms < 0) return "";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const minutes = Math.floor(ms / 60_000);
  return minutes < 60 ? `${minutes} min ${Math.floor((ms % 60_000) / 1000)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/* ---------- notices: what went wrong, when it is tried again, what the user can do ---------- */

const countdowns = new Map();

function notice(box, { title, message, inMs = null, buttons = [] }) {
  clearNotice(box);
  const parts = [element("strong", title), element("p", message)];
  if (inMs !== null) parts.push(countdown(box, inMs));
  if (buttons.length) parts.push(actions(buttons));
  box.replaceChildren(...parts);
  if (box.getAttribute("role") !== "alert") announce(`${title}. ${message}`);
}

function clearNotice(box) {
  clearInterval(countdowns.get(box));
  countdowns.delete(box);
  if (box.childNodes.length) box.replaceChildren();
}

/** Counts down where it can be seen; hidden from screen readers, which would read out every second. */
function countdown(box, ms) {
  const line = element("p", "");
  line.className = "countdown";
  line.setAttribute("aria-hidden", "true");
  const until = Date.now() + ms;
  const draw = () => {
    const leftS = Math.ceil((until - Date.now()) / 1000);
    line.textContent = leftS > 0 ? `Trying again in ${leftS} s` : "Trying again…";
  };
  draw();
  countdowns.set(box, setInterval(draw, 250));
  return line;
}

function actions(buttons) {
  const row = element("div", "");
  row.className = "actions";
  row.append(...buttons.map(([name, onClick]) => button(name, onClick, "secondary")));
  return row;
}

/* ---------- the last requests ---------- */

function renderPast() {
  const kept = past.all();
  $("past-hint").textContent = kept.length
    ? "Remembered in this browser only."
    : "None yet. They are remembered in this browser only.";
  $("forget").hidden = !kept.length;
  const hadFocus = $("past-list").contains(document.activeElement) && document.activeElement.getAttribute("href");
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
  $("request-title").focus({ preventScroll: true });
  $("request").scrollIntoView({ block: "nearest" });
}

/** Requests in the list that are not on show and have not ended: how are they now? */
async function recheckPast() {
  if (document.hidden) return;
  for (const one of past.all()) {
    if (ENDED.has(one.status) || one.status === "unknown" || one.uid === shown?.uid) continue;
    const answer = await read(one.uid);
    if (answer.kind === "ok") past.remember(pick({ ...one, ...answer.body }, ["uid", "country", "season", "status"]));
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

/* ---------- small parts ---------- */

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function button(name, onClick, className) {
  const made = element("button", name);
  made.type = "button";
  made.className = className;
  made.addEventListener("click", onClick);
  return made;
}

function icon(season) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${season ?? "any"}`);
  svg.append(use);
  return svg;
}

const pick = (from, names) => Object.fromEntries(names.filter((name) => from[name] !== undefined).map((name) => [name, from[name]]));

/* ---------- start ---------- */

async function loadCountries() {
  try {
    const response = await fetch("/countries.json");
    if (response.ok) combobox.names = await response.json();
  } catch {
    // without the list the field is a plain text field, and the service still knows every name
  }
}

function openAddress() {
  const uid = new URLSearchParams(location.search).get("uid")?.toLowerCase().replaceAll("-", "");
  if (uid && isUid(uid)) return open(uid);
  stopShown.abort();
  shown = uid
    ? { uid, country: null, season: null, askedAt: Date.now(), status: "unknown", message: "This is no uid: it has 32 digits, each 0–9 or a–f." }
    : null;
  return render();
}

window.addEventListener("popstate", openAddress);
past.onChangeElsewhere(renderPast);
document.addEventListener("visibilitychange", recheckPast);
setInterval(recheckPast, RECHECK_PAST_MS);
setInterval(tick, 100);
$("offline-banner").hidden = document.querySelector("meta[name=travelrec-offline-model]").content !== "true";
loadCountries();
openAddress();
recheckPast();
