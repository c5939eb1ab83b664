/** The chat: who talks, the connection, what is on its way, and what was said. The history tells what is shown. */

import { clearNotice, notice } from "/static/notices.js";
import { $, announce, button, element } from "/static/parts.js";

const PAGE = 50;
const MOST = 500;
const PATIENCE_MS = 20_000; // for the history, and for a connection to open
const SILENCE_MS = 45_000; // after which a connection that owes an answer is made anew
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8_000;
const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f-\x9f]/g;
const STATES = { waiting: "Waiting", sent: "Sent", failed: "Failed" };

let user = null; // {userid, token}, or null before the sign-in and after the sign-out
let said = []; // the history, oldest first
let limit = PAGE;
let coming = null; // what there is of an answer that is being made: {to, text, isOver}
let outbox = []; // what has no answer yet: {id, content, behind, state, error}
let socket = null;
let position = null; // the id behind which the connection goes on; null before the history was read
let failures = 0; // in a row, of connections
let retry = 0; // the timer of the next one
let silence = 0; // the timer of an answer that is owed
let pause = 0; // the timer of a rate limit
let reading = null; // the reading of the history that is under way
let readAgain = false;
let wake = () => {}; // ends the wait before the next reading

/* ---------- kept for a reload of this tab ---------- */

function kept(name, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(`chat:${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function keep(name, value) {
  try {
    sessionStorage.setItem(`chat:${name}`, JSON.stringify(value));
  } catch {
    // Without a storage, a reload signs out.
  }
}

const keepOutbox = () => keep(`outbox:${user.userid}`, outbox);

/* ---------- the history ---------- */

/** Reads the history until it could be read, once more if it rang meanwhile; false if this is not the user's. */
async function read() {
  readAgain = true;
  if (!reading) {
    const mine = readWhileRung().finally(() => {
      if (reading === mine) reading = null;
    });
    reading = mine;
  }
  return reading;
}

async function readWhileRung() {
  const reader = user;
  let waitMs = FIRST_WAIT_MS;
  let attempts = 0;
  while (readAgain && user === reader) {
    readAgain = false;
    const answer = await history();
    if (user !== reader) return false;
    if (answer.status === 403) {
      signOut("The token is not one of this user, or it has expired.");
      return false;
    }
    if (answer.status === 200) {
      if (socket?.readyState === WebSocket.OPEN) isThere();
      take(answer.body);
      continue;
    }
    readAgain = true;
    link(navigator.onLine ? "Reconnecting" : "Offline");
    if (++attempts >= 3) away(waitMs);
    await new Promise((resolve) => {
      wake = resolve;
      setTimeout(resolve, waitMs);
    });
    waitMs = Math.min(2 * waitMs, LONGEST_WAIT_MS);
  }
  return user === reader;
}

async function history() {
  try {
    const query = new URLSearchParams({ token: user.token, limit });
    const response = await fetch(`/chat/${encodeURIComponent(user.userid)}/messages?${query}`, {
      cache: "no-store",
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
    return { status: response.status, body: response.ok ? await response.json() : null };
  } catch {
    return { status: 0, body: null };
  }
}

/** What the history says; a message of the outbox that it has an answer to is done. */
function take(entries) {
  const isFirst = position === null;
  const newest = said.at(-1)?.id;
  said = entries;
  position ??= entries.at(-1)?.id ?? "0"; // which is before all
  if (coming?.isOver) coming = null;
  if (!isFirst) {
    const heard = entries.slice(entries.findIndex(({ id }) => id === newest) + 1);
    const answers = heard.filter(({ type }) => type === "response");
    if (answers.length) announce(answers.map(({ content }) => content).join("\n"));
  }
  settle();
  draw(isFirst);
  sendNext();
}

/** Takes out of the outbox what is answered, and finds the places of what failed in the history. */
function settle() {
  const taken = new Set();
  outbox = outbox.filter((message) => {
    message.failedAt = [];
    const from = said.findIndex(({ id }) => id === message.behind) + 1;
    for (let at = from; at < said.length; at++) {
      if (said[at].type !== "message" || said[at].content !== message.content || taken.has(at)) continue;
      taken.add(at);
      if (said[at + 1]?.type === "response") return false;
      message.failedAt.push(said[at].id);
    }
    return true;
  });
  keepOutbox();
}

/* ---------- the connection ---------- */

async function connect() {
  clearTimeout(retry);
  if (!user || socket) return;
  link(failures ? "Reconnecting" : "Connecting");
  if (position === null && !(await read())) return;
  if (!user || socket) return;
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const query = new URLSearchParams({ token: user.token, userid: user.userid, since: position, stream: true });
  const mine = new WebSocket(`${scheme}://${location.host}/ws?${query}`);
  socket = mine;
  const opening = setTimeout(() => mine.close(), PATIENCE_MS);
  mine.addEventListener("open", () => {
    clearTimeout(opening);
    failures = 0;
    isThere();
    sendNext();
  });
  mine.addEventListener("message", (event) => socket === mine && hear(event.data));
  mine.addEventListener("close", () => {
    clearTimeout(opening);
    if (socket === mine) lost();
  });
}

/** The connection has gone: what was sent on it counts as not sent, and is sent again with the same id. */
function lost() {
  socket = coming = null;
  clearTimeout(silence);
  failures++;
  for (const message of outbox) if (message.state === "sent") message.state = "waiting";
  draw();
  link(navigator.onLine ? "Reconnecting" : "Offline");
  const ms = Math.min(FIRST_WAIT_MS * 2 ** (failures - 1), LONGEST_WAIT_MS) * (0.5 + Math.random() / 2);
  retry = setTimeout(reconnect, ms);
  if (failures >= 3) away(ms);
}

function isThere() {
  link("Connected");
  clearNotice($("chat-problem"));
}

function away(inMs) {
  notice($("chat-problem"), {
    title: "No connection",
    message: "Nothing is lost: what you wrote is sent as soon as the chat can be reached.",
    inMs,
    buttons: [["Try now", reconnect]],
  });
}

/** A token may have run out meanwhile, which a refused connection does not tell: the history does. */
async function reconnect() {
  clearTimeout(retry);
  wake();
  if (user && !socket && (await read())) connect();
}

function drop() {
  const old = socket;
  lost();
  old?.close();
}

function hear(text) {
  const frame = JSON.parse(text);
  if (frame.type === "delta") {
    hearPiece(frame);
  } else if (frame.type === "response") {
    position = frame.id;
    if (coming) coming.isOver = true;
    read();
  } else if (frame.type === "error") {
    refused(frame);
  }
  expectMore();
}

/** A connection that owes an answer and is silent for long is made anew. */
function expectMore() {
  clearTimeout(silence);
  if (outbox.some(({ state }) => state === "sent")) silence = setTimeout(drop, SILENCE_MS);
}

/** A piece stands from its offset on; one that does not join on is left out: the response has it all. */
function hearPiece({ to, offset, content }) {
  if (coming?.to !== to || coming.isOver) coming = { to, text: "", isOver: false };
  const before = [...coming.text];
  if (offset > before.length) return;
  coming.text = before.slice(0, offset).join("") + content;
  draw();
}

/** An error `to` another message is heard again after `since`, or is another page's; one to none is of what was sent. */
function refused({ message: words, to }) {
  if (!to || coming?.to === to) coming = null;
  const message = outbox.find(({ state }) => state === "sent");
  if (!message || (to && to !== message.id)) return draw();
  const seconds = words.match(/Try again in (\d+) seconds/)?.[1];
  if (seconds) {
    message.state = "waiting";
    message.error = words;
    clearTimeout(pause);
    pause = setTimeout(() => {
      pause = 0;
      sendNext();
    }, 1000 * seconds);
  } else {
    message.state = "failed";
    message.error = words;
    announce(`Failed: ${words}`);
    read();
  }
  keepOutbox();
  draw();
  sendNext();
}

/** Sends the oldest that waits, if none is on its way: the answers come in the order of the messages. */
function sendNext() {
  expectMore();
  const message = outbox.find(({ state }) => state === "waiting");
  if (!message || pause || socket?.readyState !== WebSocket.OPEN || outbox.some(({ state }) => state === "sent")) return;
  message.state = "sent";
  message.error = "";
  socket.send(JSON.stringify({ type: "message", id: message.id, content: message.content, userid: user.userid }));
  expectMore();
  keepOutbox();
  draw();
}

function link(state) {
  if ($("chat-link").textContent === state) return;
  $("chat-link").textContent = state;
  $("chat-link").dataset.status = { Connected: "completed", Offline: "failed" }[state] ?? "pending";
  announce(state);
}

/* ---------- what is shown ---------- */

/** Draws the history and behind it the outbox; what stands there stays, so that a button keeps the focus. */
function draw(toEnd = false) {
  const isAtEnd = toEnd || innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
  const hidden = new Set(outbox.flatMap(({ failedAt }) => failedAt ?? []));
  const before = new Map([...$("talk").children].map((item) => [item.dataset.key, item]));
  const items = said
    .filter(({ id }) => !hidden.has(id))
    .map((entry) => before.get(entry.id) ?? bubble(entry.id, entry.type, entry.content, entry.timestamp));
  const asked = outbox.findIndex(({ id }) => id === coming?.to);
  if (coming?.text && asked < 0) items.push(comingBubble(before));
  for (const [place, message] of outbox.entries()) {
    const item = before.get(`own ${message.id}`) ?? bubble(`own ${message.id}`, "message", message.content);
    fill(item, message);
    items.push(item);
    if (coming?.text && asked === place) items.push(comingBubble(before));
  }
  const list = $("talk");
  items.forEach((item, at) => item !== list.children[at] && list.insertBefore(item, list.children[at] ?? null));
  while (list.children.length > items.length) list.lastChild.remove();
  $("chat-hint").hidden = items.length > 0;
  $("earlier").hidden = said.length < limit || limit >= MOST;
  if (isAtEnd) scrollTo(0, document.documentElement.scrollHeight);
}

function bubble(key, type, content, timestamp) {
  const item = document.createElement("li");
  item.dataset.key = key;
  item.dataset.type = type;
  const name = element("span", type === "message" ? "You: " : "Travelrec: ");
  name.className = "visually-hidden";
  const text = element("p", content);
  text.className = "words";
  text.prepend(name);
  item.append(text);
  if (timestamp) {
    const at = new Date(timestamp);
    const isToday = at.toDateString() === new Date().toDateString();
    const time = element(
      "time",
      at.toLocaleString(undefined, { timeStyle: "short", ...(!isToday && { dateStyle: "medium" }) }),
    );
    time.dateTime = timestamp;
    item.append(time);
  }
  return item;
}

/** What there is of the answer that is being made. */
function comingBubble(before) {
  const key = `to ${coming.to}`;
  const item = before.get(key) ?? bubble(key, "coming", coming.text);
  const text = item.querySelector(".words").lastChild;
  if (text.data !== coming.text) text.data = coming.text;
  return item;
}

/** Shows how a message of the outbox is. */
function fill(item, message) {
  const shown = `${message.state} ${message.error}`;
  if (item.dataset.shown === shown) return;
  item.dataset.shown = shown;
  item.dataset.state = message.state;
  item.querySelector(".how")?.remove();
  const how = document.createElement("div");
  how.className = "how";
  const chip = element("span", STATES[message.state]);
  chip.className = "chip";
  chip.dataset.status = { failed: "failed", waiting: "cancelled" }[message.state] ?? "pending";
  how.append(chip);
  if (message.error) how.append(element("span", message.error));
  if (message.state === "failed") {
    how.append(
      button("Send again", () => sendAgain(message), "quiet"),
      button("Forget", () => forget(message), "quiet"),
    );
  }
  item.append(how);
}

/* ---------- what can be done ---------- */

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function say() {
  const content = $("words").value.replace(CONTROLS, "").trim();
  $("words").focus();
  if (!content) return;
  $("words").value = "";
  outbox.push({ id: newId(), content, behind: said.at(-1)?.id ?? "", state: "waiting", error: "" });
  keepOutbox();
  draw(true);
  sendNext();
}

function sendAgain(message) {
  message.state = "waiting";
  message.error = "";
  $("words").focus();
  draw();
  sendNext();
}

function forget(message) {
  outbox = outbox.filter((one) => one !== message);
  keepOutbox();
  $("words").focus();
  draw();
}

function signIn(one) {
  user = one;
  keep("user", user);
  outbox = kept(`outbox:${user.userid}`, []);
  for (const message of outbox) if (message.state === "sent") message.state = "waiting";
  show();
  connect();
}

function signOut(why = "") {
  const old = socket;
  user = socket = position = coming = null;
  said = [];
  outbox = [];
  limit = PAGE;
  failures = 0;
  reading = null; // what is being read is of who was here
  readAgain = false;
  wake();
  for (const timer of [retry, silence, pause]) clearTimeout(timer);
  pause = 0;
  keep("user", null);
  clearNotice($("chat-problem"));
  $("talk").replaceChildren();
  old?.close();
  show(why);
}

function show(why = "") {
  $("sign-in").hidden = user !== null;
  $("chat-room").hidden = $("chat-who").hidden = user === null;
  $("chat-userid").textContent = user?.userid ?? "";
  $("chat-link").textContent = "";
  $("sign-in-error").textContent = why;
  $("sign-in-error").hidden = !why;
  if (user) $("words").focus();
  else if (why) $("chat-token").focus();
}

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  const userid = $("chat-user").value.trim();
  const isId = /^[A-Za-z0-9._-]{1,64}$/.test(userid);
  $("chat-user").toggleAttribute("aria-invalid", false);
  if (isId) {
    signIn({ userid, token: $("chat-token").value.trim() });
  } else {
    show("A user id has 1 to 64 of A-Z, a-z, 0-9, dot, underscore and hyphen.");
    $("chat-user").setAttribute("aria-invalid", "true");
    $("chat-user").focus();
  }
});

$("sign-out").addEventListener("click", () => {
  signOut();
  $("chat-user").focus();
});

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  say();
});

$("words").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  say();
});

$("earlier").addEventListener("click", () => {
  limit = Math.min(limit + 3 * PAGE, MOST);
  read();
});

addEventListener("online", reconnect);
addEventListener("offline", () => user && drop());

/* ---------- start ---------- */

const before = kept("user", null);
if (before) signIn(before);
