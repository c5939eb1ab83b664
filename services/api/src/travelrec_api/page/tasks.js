/** The table of tasks: what there is, how it is now, a new one, and what can be done with each. */

import { $, announce, button, element } from "/static/parts.js";

const PATH = "/api/tasks";
const PAGE = 50;
const LOOK_MS = 2_000;
const PATIENCE_MS = 20_000;
const CHIPS = { "Not Started": "cancelled", "In Progress": "pending", Completed: "completed", Error: "failed" };

let wanted = PAGE;
let shown = new Map(); // id → its row, and the task that it shows
let looking = 0; // the number of the newest look: what an older one brings is old
let undone = ""; // what could not be done last
let creating = false;

/* ---------- the API ---------- */

const address = (id) => `${PATH}/${encodeURIComponent(id)}`;

/** `{response, body}`, or null where nobody answers. */
async function call(method, path, body) {
  try {
    const response = await fetch(path, {
      method,
      headers: { Accept: "application/json", ...(body && { "Content-Type": "application/json" }) },
      body: body && JSON.stringify(body),
      cache: "no-store",
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
    const text = await response.text();
    return { response, body: parse(text) };
  } catch {
    return null;
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // nothing, or a proxy's own page
  }
}

const complaint = (answer) => answer?.body?.message ?? "The service can’t be reached. Try again in a moment.";

/* ---------- what there is ---------- */

/** Reads the tasks on show, a page after the other, and draws what has changed. */
async function look() {
  const number = ++looking;
  const status = $("task-filter").value;
  const tasks = [];
  let next = `${PATH}?${new URLSearchParams({ limit: PAGE, ...(status && { status }) })}`;
  while (next && tasks.length < wanted) {
    const answer = await call("GET", next);
    if (number !== looking) return;
    if (!answer?.response.ok || !Array.isArray(answer.body)) {
      say("task-problem", complaint(answer));
      return;
    }
    tasks.push(...answer.body);
    next = answer.response.headers.get("Link")?.match(/<([^>]*)>; rel="next"/)?.[1];
  }
  say("task-problem", undone);
  draw(tasks);
  $("more").hidden = !next;
}

function draw(tasks) {
  const before = shown;
  shown = new Map(tasks.map((task) => [task.id, before.get(task.id) ?? newRow(task)]));
  for (const task of tasks) {
    const one = shown.get(task.id);
    if (before.has(task.id) && one.task.status !== task.status) announce(`Task ${task.id}: ${task.status}`);
    if (one.task !== task) fill(one, task);
  }
  const rows = [...shown.values()].map((one) => one.row);
  const isSame = rows.length === $("task-rows").children.length && rows.every((row, at) => row === $("task-rows").children[at]);
  if (!isSame) {
    const hadFocus = $("task-rows").contains(document.activeElement);
    const focused = document.activeElement;
    $("task-rows").replaceChildren(...rows);
    if (hadFocus) (focused.isConnected ? focused : $("tasks-title")).focus();
  }
  $("task-table").hidden = !tasks.length;
  $("task-hint").hidden = tasks.length > 0;
}

function newRow(task) {
  const row = document.createElement("tr");
  const id = element("th", task.id);
  id.scope = "row";
  const chip = element("span", "");
  chip.className = "chip";
  const state = document.createElement("td");
  state.append(chip);
  const message = element("td", "");
  const again = button("Submit again", () => setBack(task.id), "quiet");
  const remove = button("Delete", () => forget(task.id), "quiet");
  again.setAttribute("aria-label", `Submit ${task.id} again`);
  remove.setAttribute("aria-label", `Delete ${task.id}`);
  const actions = document.createElement("td");
  actions.append(again, remove);
  row.append(id, state, message, actions);
  const one = { row, chip, message, again, task };
  fill(one, task);
  return one;
}

function fill(one, task) {
  one.task = task;
  one.row.dataset.status = task.status;
  one.chip.textContent = task.status;
  one.chip.dataset.status = CHIPS[task.status] ?? "pending";
  one.message.textContent = task.error_message ?? "";
  one.again.hidden = !["Completed", "Error"].includes(task.status);
}

/* ---------- what can be done ---------- */

async function setBack(id) {
  await done(await call("PATCH", address(id), { status: "Not Started" }), `Task ${id} will be submitted again.`);
}

async function forget(id) {
  await done(await call("DELETE", address(id)), `Task ${id} is deleted.`);
}

async function done(answer, words) {
  undone = answer?.response.ok ? "" : complaint(answer);
  if (!undone) announce(words);
  await look();
}

$("create").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (creating) return;
  creating = true;
  const given = $("task-id").value;
  const id = given.trim();
  const answer = id ? await call("POST", PATH, { id }) : { body: { message: "Give the task an id." } };
  creating = false;
  const isMade = answer?.response?.ok;
  say("create-error", isMade ? "" : complaint(answer));
  if (isMade) {
    if ($("task-id").value === given) $("task-id").value = "";
    $("task-id").removeAttribute("aria-invalid");
    announce(`Task ${id} is created.`);
    await look();
  } else {
    $("task-id").setAttribute("aria-invalid", "true");
  }
  $("task-id").focus();
});

$("task-filter").addEventListener("change", () => {
  wanted = PAGE;
  look();
});

$("more").addEventListener("click", () => {
  wanted += PAGE;
  look();
});

function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
  $(id).hidden = !text;
}

/* ---------- start ---------- */

async function follow() {
  if (!document.hidden) await look();
  setTimeout(follow, LOOK_MS);
}

document.addEventListener("visibilitychange", () => !document.hidden && look());
follow();
