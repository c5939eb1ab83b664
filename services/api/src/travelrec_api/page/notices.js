/** Notices: what went wrong, when it is tried again, what the user can do. */

import { announce, button, element } from "/static/parts.js";

const open = new Map(); // box → what stands in it

/**
 * Shows a notice in `box`; `buttons` are pairs of a name and what a press does. The same notice again leaves what
 * stands there, so that a button keeps the focus and a screen reader does not read everything once more.
 */
export function notice(box, { title, message, inMs = null, buttons = [] }) {
  const words = JSON.stringify([title, message, buttons.map(([name]) => name)]);
  if (open.get(box)?.words !== words) build(box, words, title, message, buttons);
  const standing = open.get(box);
  standing.onPress = Object.fromEntries(buttons);
  clearInterval(standing.timer);
  standing.timer = inMs === null ? null : countDown(standing.line, inMs);
  standing.line.hidden = inMs === null;
}

export function clearNotice(box) {
  clearInterval(open.get(box)?.timer);
  if (open.delete(box)) box.replaceChildren();
}

function build(box, words, title, message, buttons) {
  clearNotice(box);
  const line = element("p", "");
  line.className = "countdown";
  line.setAttribute("aria-hidden", "true"); // a screen reader would read out every second
  const row = element("div", "");
  row.className = "actions";
  row.append(...buttons.map(([name]) => button(name, () => open.get(box).onPress[name](), "secondary")));
  open.set(box, { words, line });
  box.replaceChildren(
    element("strong", title),
    element("p", message),
    line,
    ...(buttons.length ? [row] : []),
  );
  if (box.getAttribute("role") !== "alert") announce(`${title}. ${message}`);
}

function countDown(line, ms) {
  const until = Date.now() + ms;
  const draw = () => {
    const leftS = Math.ceil((until - Date.now()) / 1000);
    line.textContent = leftS > 0 ? `Trying again in ${leftS} s` : "Trying again…";
  };
  draw();
  return setInterval(draw, 250);
}
