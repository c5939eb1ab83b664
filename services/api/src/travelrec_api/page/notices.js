/** Notices: what went wrong, when it is tried again, what the user can do. */

import { announce, button, element } from "/static/parts.js";

const countdowns = new Map();

export function notice(box, { title, message, inMs = null, buttons = [] }) {
  clearNotice(box);
  const parts = [element("strong", title), element("p", message)];
  if (inMs !== null) parts.push(countdown(box, inMs));
  if (buttons.length) parts.push(actions(buttons));
  box.replaceChildren(...parts);
  if (box.getAttribute("role") !== "alert") announce(`${title}. ${message}`);
}

export function clearNotice(box) {
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
