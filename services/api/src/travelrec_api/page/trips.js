/** The joined trips as they come, and a button that makes some; what was made here and is not joined yet is pending. */

import { $, announce, element } from "/static/parts.js";

const MOST = 100; // rows
const PATIENCE_MS = 20_000;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8_000;

const rows = new Map(); // trip id → its row, the oldest first
let joined = 0;
let missed = 0;
let failures = 0; // in a row, of connections

/* ---------- the stream ---------- */

function connect() {
  const stream = new EventSource("/api/trips/events");
  stream.addEventListener("live", () => {
    failures = 0;
    link("Live", "completed");
  });
  stream.addEventListener("away", () => link("Waiting for the broker", "pending"));
  stream.addEventListener("joined", (event) => show(JSON.parse(event.data)));
  stream.addEventListener("missed", (event) => {
    missed += JSON.parse(event.data);
    count();
  });
  stream.addEventListener("error", () => {
    stream.close(); // the browser's own retry knows no growing pauses
    link(navigator.onLine ? "Reconnecting" : "Offline", "failed");
    setTimeout(connect, Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** failures++));
  });
}

function link(words, status) {
  if ($("link").textContent === words) return;
  $("link").textContent = words;
  $("link").dataset.status = status;
  announce(words);
}

/* ---------- the table ---------- */

const money = new Intl.NumberFormat("en", { style: "currency", currency: "USD" });

function show(trip) {
  const row = rowOf(trip.trip_id);
  if (row.chip.textContent !== "Joined") joined += 1; // a trip may be published again, the same
  row.way.textContent = `${trip.pickup_location} → ${trip.destination_location}`;
  row.fare.textContent = money.format(trip.final_adjusted_fare);
  row.rating.textContent = trip.rating_to_driver === null ? "none" : `${trip.rating_to_driver} of 5`;
  row.chip.textContent = "Joined";
  row.chip.dataset.status = "completed";
  count();
}

/** The row of a trip, made as pending if there is none. */
function rowOf(id) {
  if (rows.has(id)) return rows.get(id);
  const line = document.createElement("tr");
  const name = element("th", id.slice(0, 8));
  name.scope = "row";
  name.title = id;
  const [way, fare, rating, state] = ["…", "", "", ""].map((text) => element("td", text));
  const chip = element("span", "Pending");
  chip.className = "chip";
  chip.dataset.status = "pending";
  state.append(chip);
  line.append(name, way, fare, rating, state);
  const row = { line, way, fare, rating, chip };
  rows.set(id, row);
  $("trip-rows").prepend(line);
  if (rows.size > MOST) {
    const [oldest] = rows;
    oldest[1].line.remove();
    rows.delete(oldest[0]);
  }
  $("trip-table").hidden = false;
  $("trip-hint").hidden = true;
  return row;
}

function count() {
  const words = `${joined} joined since you came`;
  $("trip-count").textContent = missed ? `${words}, ${missed} not shown` : words;
}

/* ---------- new ones ---------- */

async function make(path, body) {
  for (const id of ["make-one", "make-many"]) $(id).disabled = true;
  say("");
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { Accept: "application/json", ...(body && { "Content-Type": "application/json" }) },
      body: body && JSON.stringify(body),
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
    const answer = await response.json();
    if (response.ok) for (const id of answer.trip_ids) rowOf(id);
    else say(answer.message);
  } catch {
    say("The service can’t be reached. Try again in a moment.");
  }
  for (const id of ["make-one", "make-many"]) $(id).disabled = false;
}

function say(text) {
  $("trip-problem").textContent = text;
  $("trip-problem").hidden = !text;
}

$("make-one").addEventListener("click", () => make("/api/generate-trip"));
$("make-many").addEventListener("click", () => make("/api/generate-multiple-trips", { count: 20 }));

connect();
