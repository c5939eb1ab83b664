/** The small parts that the page is made of; text is always set as text. */

export const $ = (id) => document.getElementById(id);

/** Says it to screen readers, without moving the focus. */
export function announce(text) {
  $("announcer").textContent = text;
}

export function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

export function button(name, onClick, className) {
  const made = element("button", name);
  made.type = "button";
  made.className = className;
  made.addEventListener("click", onClick);
  return made;
}

export function icon(season) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${season ?? "any"}`);
  svg.append(use);
  return svg;
}
