// What the tests of the page ask the browser; in every page they open, as `checks`.

const luminance = ([r, g, b]) => {
  const [x, y, z] = [r, g, b]
    .map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};

const contrast = (a, b) => {
  const [light, dark] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (light + 0.05) / (dark + 0.05);
};

/** A CSS colour as [red, green, blue, alpha], as it is painted. */
const rgba = (color) => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d");
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};

const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = rgba(getComputedStyle(at).backgroundColor);
    if (color[3] === 255) return color;
  }
  return [255, 255, 255, 255];
};

const ownText = (element) =>
  element.tagName === "INPUT"
    ? element.type === "text" && element.value
    : [...element.childNodes]
        .filter((node) => node.nodeType === Node.TEXT_NODE)
        .map((node) => node.data.trim())
        .join("");

const isSeen = (element) =>
  element.checkVisibility() && !element.closest(".visually-hidden, .skip, noscript");

globalThis.checks = {
  /** Each status that the page showed, in order, however short. */
  statuses: [],

  /** The contrast of each text with what is behind it: [[text, ratio, needed by WCAG 2 AA], …]. */
  contrasts() {
    return [...document.querySelectorAll("body *")]
      .filter((element) => isSeen(element) && ownText(element))
      .map((element) => {
        const { color, fontSize, fontWeight } = getComputedStyle(element);
        const size = parseFloat(fontSize);
        const isLarge = size >= 24 || (size >= 18.66 && Number(fontWeight) >= 700);
        return [ownText(element), contrast(rgba(color), behind(element)), isLarge ? 3 : 4.5];
      });
  },

  /** The contrast of the edges of what can be typed in or pressed with what is around them. */
  edges() {
    return [
      ...document.querySelectorAll(
        "input[type=text]:not([readonly]), .season:not(:has(:checked)), .secondary",
      ),
    ]
      .filter(isSeen)
      .map((element) => [
        element.id || element.textContent,
        contrast(rgba(getComputedStyle(element).borderTopColor), behind(element.parentElement)),
      ]);
  },

  /** What has the focus: how thick its outline is, and how large it is. */
  focused() {
    const active = document.activeElement;
    const element = active.type === "radio" ? active.closest("label") : active;
    const { outlineStyle, outlineWidth } = getComputedStyle(element);
    const { width, height } = element.getBoundingClientRect();
    const outline = outlineStyle === "none" ? 0 : parseFloat(outlineWidth);
    return { what: element.outerHTML.slice(0, 80), outline, width, height };
  },

  unnamed() {
    return [...document.querySelectorAll("button, a[href], input, summary")]
      .filter((element) => element.checkVisibility())
      .filter(({ textContent, ariaLabel, labels }) => !(textContent.trim() || ariaLabel || labels?.length))
      .map((element) => element.outerHTML);
  },

  repeatedIds() {
    const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
    return ids.filter((id, index) => ids.indexOf(id) !== index);
  },

  /** Waits until what moves once has come to rest. */
  async standstill() {
    const ending = document
      .getAnimations()
      .filter(({ effect }) => effect.getTiming().iterations !== Infinity);
    await Promise.all(ending.map(({ finished }) => finished));
  },

  background: () => luminance(rgba(getComputedStyle(document.body).backgroundColor)),
};

addEventListener("DOMContentLoaded", () => {
  const request = document.getElementById("request");
  if (!request) return; // the docs page
  new MutationObserver(() => {
    const { status } = request.dataset;
    if (status !== checks.statuses.at(-1)) checks.statuses.push(status);
  }).observe(request, { attributeFilter: ["data-status"] });
});
