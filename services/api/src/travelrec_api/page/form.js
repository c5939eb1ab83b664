/** The form: a country, a season, and sending them until the service has them. */

import { ask, newKey } from "/static/api.js";
import { Combobox, plain } from "/static/combobox.js";
import { clearNotice, notice } from "/static/notices.js";
import { $, announce, button } from "/static/parts.js";
import { pause } from "/static/watch.js";

const MOST_SENDS = 6;
const SLOWEST_MS = 15_000;

const form = $("ask");
const country = $("country");
const nudges = new EventTarget();
const combobox = new Combobox({
  input: country,
  toggle: $("country-toggle"),
  list: $("country-list"),
  announce,
});

let stopSending = new AbortController();
let onAccepted = () => {};

/** Makes the form work; `accepted({uid, country, season, askedAt, traceId})` is called for each request the service has. */
export function startForm(accepted) {
  onAccepted = accepted;
  form.addEventListener("submit", onSubmit);
  for (const event of ["input", "change"]) country.addEventListener(event, () => clearFieldError("country"));
  $("season-field").addEventListener("change", () => clearFieldError("season"));
  loadCountries();
}

/** Sends the form with this choice, as if the user had made it. */
export function askAgain(where, season) {
  country.value = where;
  form.elements.season.value = season;
  form.requestSubmit();
}

async function loadCountries() {
  try {
    const response = await fetch("/countries.json");
    if (response.ok) combobox.names = await response.json();
  } catch {
    // without the list the field is a plain text field, and the service still knows every name
  }
}

/* ---------- sending ---------- */

function onSubmit(event) {
  event.preventDefault();
  combobox.close();
  if (isBusy()) return;
  clearErrors();
  const where = country.value.trim();
  const season = form.elements.season.value;
  if (!season) fieldError("season", "Choose one of the four seasons.");
  if (!where) fieldError("country", "Say where to: type or choose a country.");
  if (!focusFirstError()) send(where, season);
}

/** Sends until the service has it, the user stops it, or it makes no sense; the key makes repeats harmless. */
async function send(where, season, key = newKey()) {
  stopSending.abort();
  stopSending = new AbortController();
  const { signal } = stopSending;
  const askedAt = Date.now();
  busy(true);
  announce("Sending your request.");
  for (let sends = 1; ; sends += 1) {
    const answer = await ask(where, season, key, signal);
    if (signal.aborted) return;
    const canRetry = answer.kind === "busy" || answer.kind === "unreachable";
    if (!canRetry) {
      busy(false);
      if ($("send-problem").contains(document.activeElement)) $("submit").focus();
      clearNotice($("send-problem"));
      sent(answer, { country: where, season, askedAt });
      return;
    }
    const isLast = sends >= MOST_SENDS;
    const inMs = (answer.retryAfterS ?? 0) * 1000 || Math.min(1000 * 2 ** sends, SLOWEST_MS);
    notice($("send-problem"), {
      title:
        answer.kind === "busy" ? "The service can’t take requests right now" : "The service can’t be reached",
      message: isLast
        ? "Your request is not sent yet. Try again when you like: it is never counted twice."
        : answer.message || "Your request was not lost: it is sent again, and never counted twice.",
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
  announce("Stopped.");
}

function sent(answer, request) {
  if (answer.kind === "ok") {
    onAccepted({ ...request, uid: answer.body.uid, traceId: answer.traceId });
  } else if (answer.kind === "invalid" && answer.details.some(({ field }) => isField(field))) {
    for (const { field, message } of answer.details) if (isField(field)) fieldError(fieldOf(field), message);
    focusFirstError();
  } else {
    notice($("send-problem"), {
      title: answer.title || "The request was not accepted",
      message: answer.message,
    });
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
  const names = namesIn(message.split(/did you mean/i)[1] ?? "");
  $("country-suggestions").hidden = !names.length;
  $("country-suggestions").replaceChildren(
    ...names.map((name) => button(name, () => useCountry(name), "suggestion")),
  );
}

/** The names of countries in a text; the longest are looked for first, so that "Guinea-Bissau" is not "Guinea" too. */
function namesIn(text) {
  let rest = ` ${plain(text)} `;
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
