/** A text field with a list of names to choose from, after the WAI-ARIA pattern "editable combobox with list". */

/** Lower case, without accents and punctuation: "Côte d’Ivoire" and "cote d ivoire" are the same. */
export const plain = (text) =>
  text
    .normalize("NFD")
    .replace(/\p{M}/gu, "")
    .toLowerCase()
    .replace(/[^\p{L}\p{N}]+/gu, " ")
    .trim();

export class Combobox {
  #input;
  #toggle;
  #list;
  #announce;
  #names = [];
  #active = -1;

  constructor({ input, toggle, list, announce }) {
    this.#input = input;
    this.#toggle = toggle;
    this.#list = list;
    this.#announce = announce;
    input.addEventListener("input", () => this.#open());
    input.addEventListener("keydown", (event) => this.#onKey(event));
    input.addEventListener("blur", () => this.close());
    input.addEventListener("click", () => this.#open());
    for (const part of [list, toggle]) part.addEventListener("mousedown", (event) => event.preventDefault()); // the field keeps the focus
    list.addEventListener("click", (event) => this.#choose(event.target.closest("[role=option]")));
    toggle.addEventListener("click", () => this.#onToggle());
  }

  set names(names) {
    this.#names = names.map((name) => ({ name, plain: plain(name) }));
    if (document.activeElement === this.#input && this.#input.value) this.#open();
  }

  get names() {
    return this.#names.map(({ name }) => name);
  }

  get isOpen() {
    return !this.#list.hidden;
  }

  close() {
    this.#list.hidden = true;
    this.#activate(-1);
    this.#expanded(false);
  }

  #onToggle() {
    if (this.isOpen) return this.close();
    this.#input.focus();
    return this.#open({ everything: true });
  }

  #open({ everything = false } = {}) {
    const wanted = everything ? "" : plain(this.#input.value);
    const found = this.#matching(wanted);
    const isExact = found.length === 1 && found[0].plain === wanted;
    if (!found.length || isExact) {
      if (!found.length && this.#names.length) this.#announce("No name in the list matches.");
      return this.close();
    }
    this.#list.replaceChildren(...found.map(({ name }, index) => option(name, index)));
    this.#list.hidden = false;
    this.#list.scrollTop = 0;
    this.#activate(-1);
    this.#expanded(true);
    return this.#announce(`${found.length} ${found.length === 1 ? "name" : "names"} in the list.`);
  }

  /** Names that start so, then names with a word that starts so, then names that contain it. */
  #matching(wanted) {
    if (!wanted) return this.#names;
    const rank = ({ plain: name }) =>
      name.startsWith(wanted) ? 0 : ` ${name}`.includes(` ${wanted}`) ? 1 : name.includes(wanted) ? 2 : 3;
    return this.#names
      .map((one) => ({ ...one, rank: rank(one) }))
      .filter((one) => one.rank < 3)
      .sort((a, b) => a.rank - b.rank);
  }

  #onKey(event) {
    if (event.isComposing || event.ctrlKey || event.metaKey) return;
    if (event.key === "Tab") {
      this.#chooseActive(); // and the focus goes on as usual
      return;
    }
    const handlers = {
      ArrowDown: () => this.#move(1),
      ArrowUp: () => this.#move(-1),
      Enter: () => this.#chooseActive(),
      Escape: () => this.#dismiss(),
    };
    if (handlers[event.key]?.()) event.preventDefault();
  }

  #move(by) {
    if (!this.isOpen) this.#open({ everything: !this.#input.value });
    if (!this.isOpen) this.#open({ everything: true }); // nothing matches, or just the chosen one: show them all
    const count = this.#list.children.length;
    const from = this.#active < 0 && by < 0 ? count : this.#active;
    this.#activate((from + by + count) % count);
    return true;
  }

  #chooseActive() {
    const isOnOne = this.isOpen && this.#active >= 0;
    if (isOnOne) this.#choose(this.#list.children[this.#active]);
    return isOnOne;
  }

  #dismiss() {
    const wasOpen = this.isOpen;
    this.close();
    return wasOpen;
  }

  #choose(item) {
    if (!item) return;
    this.#input.value = item.textContent;
    this.close();
    this.#input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  #activate(index) {
    this.#list.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
    this.#active = index;
    const item = this.#list.children[index];
    item?.setAttribute("aria-selected", "true");
    item?.scrollIntoView({ block: "nearest" });
    if (item) this.#input.setAttribute("aria-activedescendant", item.id);
    else this.#input.removeAttribute("aria-activedescendant");
  }

  #expanded(isOpen) {
    for (const part of [this.#input, this.#toggle]) part.setAttribute("aria-expanded", String(isOpen));
  }
}

function option(name, index) {
  const item = document.createElement("li");
  item.id = `country-option-${index}`;
  item.setAttribute("role", "option");
  item.setAttribute("aria-selected", "false");
  item.textContent = name;
  return item;
}
