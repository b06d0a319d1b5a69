"use strict";
// A text whose tokens show who decided them, and the union of one of them in a panel: what the trace's page and the
// server's share. Every text is put into a page as a text node, never as markup, because models can write anything.
const ORDER = ["agreement", "primary", "overruled", "gated"];
const NAMES = { agreement: "agreement", primary: "primary", overruled: "primary overruled", gated: "gated" };
const SHOWN_SLOTS = 20; // of up to 1,024; more would make moving from token to token slow

// On a small screen the union covers the end of the text, so it is shown on demand, and the token is scrolled clear of it.
const small = matchMedia("(max-width: 56rem)");

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const probability = (p) => (p === 0 ? "0" : p < 0.001 ? "<.001" : p.toFixed(3).replace(/^0/, ""));

// Control characters, and characters that reorder or hide the text around them.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/u;
const SIGNS = { "\n": "↵", "\t": "⇥", " ": "␣" };

/** Text with its invisible characters made visible; in running text spaces stay spaces and lines break. */
function visible(text, running) {
  const made = document.createDocumentFragment();
  for (const character of text) {
    // In a table every space is marked; in running text only characters that leave no gap.
    if (!UNSEEN.test(character) && (running || !/\s/u.test(character))) made.append(character);
    else {
      const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      made.append(element("span", { class: "sign" }, SIGNS[character] ?? `U+${code}`));
      if (running && (character === "\n" || character === "\t")) made.append(character);
    }
  }
  made.normalize();
  return made;
}

function bar(share) {
  const made = element("span", { class: "bar" });
  if (share === 0) return made;
  made.style.width = `${100 * share}%`;
  return made;
}

/** One member's token in one slot, with its probability as a number and as a bar. */
function cell(tag, attributes, text, number, share) {
  const made = element(
    tag,
    attributes,
    element("div", { class: "line" }, text, element("span", { class: "number" }, number)),
  );
  made.append(bar(share));
  return made;
}

/**
 * The tokens of one text, in an element that is a listbox, and a panel that shows one of them; texts may share a panel.
 * A trace needs members, primary, options, tokens and eos_token_ids; its steps may come later.
 */
class TokenView {
  /** onShow(i) and onFocus(i) are told which token the panel shows, undefined for none, and which has the focus. */
  constructor(list, panel, { onShow = () => {}, onFocus = () => {} } = {}) {
    this.list = list;
    this.panel = panel;
    this.onShow = onShow;
    this.onFocus = onFocus;
    this.tokens = [];
    list.addEventListener("pointerover", (event) => {
      const i = this.stepOf(event);
      if (event.pointerType === "mouse" && i !== undefined && i !== this.selected) this.show(i);
    });
    list.addEventListener("pointerleave", (event) => {
      const back = event.pointerType === "mouse" && this.focused !== undefined && this.focused !== this.selected;
      if (back) this.show(this.focused);
    });
    list.addEventListener("click", (event) => {
      const i = this.stepOf(event);
      if (i !== undefined) this.focus(i);
    });
    list.addEventListener("focusin", (event) => {
      const i = this.stepOf(event);
      if (i === undefined) return;
      this.setTabStop(i);
      this.show(i);
      this.onFocus(i);
    });
    list.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Show a trace from its beginning. */
  start(trace) {
    this.trace = trace;
    this.selected = this.focused = undefined;
    this.tokens = [];
    this.list.replaceChildren();
    this.addTokens();
  }

  /** Show the steps that the trace has got since the last call. */
  addTokens() {
    for (let i = this.tokens.length; i < this.trace.steps.length; i++) {
      this.tokens.push(this.tokenOf(this.trace.steps[i], i));
      this.list.append(this.tokens[i]);
    }
    if (this.selected !== undefined) this.panel.querySelector("h2").textContent = this.title();
  }

  ownText(member, id) {
    return id < 0 ? "" : this.trace.tokens[member][id];
  }

  /** What an id adds to the text in a step: without a space that stood before the text and is no part of it. */
  stepText(step, member, id) {
    const text = this.ownText(member, id);
    return step.starts?.[member] && text.startsWith(" ") ? text.slice(1) : text;
  }

  isName(member, id) {
    return this.trace.eos_token_ids[member].includes(id);
  }

  count(decided) {
    return this.trace.steps.filter((step) => step.decided === decided).length;
  }

  tokenOf(step, i) {
    const { primary } = this.trace;
    const span = element("span", {
      class: `token ${step.decided}${step.drafted ? " drafted" : ""}`,
      role: "option",
      "aria-selected": "false",
      tabindex: i ? "-1" : "0",
    });
    span.dataset.step = i;
    span.append(visible(step.piece, true));
    if (step.cut) span.append(element("span", { class: "cut" }, visible(step.cut, true)));
    if (!step.piece && !step.cut) {
      const id = step.ids[step.winner][primary];
      const name = id >= 0 && !this.isName(primary, id) ? this.ownText(primary, id) : "■";
      span.append(element("span", { class: "sign" }, name));
      span.setAttribute("aria-label", name === "■" ? "end of text" : `bytes ${name}`);
    }
    return span;
  }

  /** A button per kind of decision, with how many there are; it goes to the next one. */
  legend() {
    return ORDER.filter((name) => this.count(name) || name !== "gated").map((name) => {
      const button = element(
        "button",
        { type: "button", title: `next: ${NAMES[name]}` },
        element("span", { class: `swatch ${name}` }),
        `${NAMES[name]} ${this.count(name)}`,
      );
      button.disabled = !this.count(name);
      button.addEventListener("click", () => this.goToNext(name, 1));
      return button;
    });
  }

  tokenText(step, member, id, whole) {
    if (id < 0) return element("span", { class: "quiet", title: "has no token for it" }, "–");
    const text = this.stepText(step, member, id);
    const made = element("span", { class: this.isName(member, id) ? "text special" : "text" });
    made.append(visible(text, false));
    if (text !== whole && !this.isName(member, id)) {
      made.append(element("span", { class: "sign" }, "…"));
      made.title = "its first sub-token";
    }
    return made;
  }

  unionTable(step, limit) {
    const slots = step.averages.map((_, slot) => slot);
    slots.sort((a, b) => (b === step.winner) - (a === step.winner) || step.averages[b] - step.averages[a] || a - b);
    const head = element("tr", {}, element("th", { scope: "col" }, "average"));
    this.trace.members.forEach((name) => head.append(element("th", { scope: "col" }, name)));
    const body = element("tbody");
    for (const slot of slots.slice(0, limit)) {
      const speller = step.spellers[slot];
      const id = step.ids[slot][speller];
      const whole = this.stepText(step, speller, id);
      const row = element("tr", { class: slot === step.winner ? "taken" : undefined });
      row.append(
        cell(
          "th",
          { scope: "row", class: "cell average" },
          this.tokenText(step, speller, id, whole),
          probability(step.averages[slot]),
          step.averages[slot],
        ),
      );
      step.ids[slot].forEach((id, m) => {
        const there = !(step.missing || []).includes(m);
        const own = there && step.decided !== "gated" && step.favorites[m] === slot;
        const p = step.probs[slot][m];
        row.append(
          cell(
            "td",
            { class: own ? "cell own" : "cell", title: own ? "its own choice" : undefined },
            this.tokenText(step, m, id, whole),
            probability(p),
            p,
          ),
        );
      });
      body.append(row);
    }
    const table = element("table", { class: "union" }, element("thead", {}, head), body);
    table.style.minWidth = `${(this.trace.members.length > 3 ? 5.6 : 4.6) * (this.trace.members.length + 1)}rem`; // with more members the panel scrolls sideways
    return table;
  }

  sentence(step) {
    const made = element("p", {}, element("span", { class: `mark ${step.decided}` }, NAMES[step.decided]), " ");
    const slot = step.favorites[this.trace.primary];
    if (step.decided === "gated") made.append(`${this.trace.members[this.trace.primary]} was sure of it; the others were not asked.`);
    if (step.decided === "overruled") {
      const id = step.ids[slot][this.trace.primary];
      made.append(
        `${this.trace.members[this.trace.primary]} wanted `,
        this.tokenText(step, this.trace.primary, id, this.stepText(step, this.trace.primary, id)),
        ` (${probability(step.probs[slot][this.trace.primary])}).`,
      );
    }
    if (step.decided === "primary") {
      const others = this.trace.members.filter((_, m) => step.favorites[m] !== step.winner);
      made.append(`${others.join(", ")} wanted something else.`);
    }
    if (step.averages[step.winner] < Math.max(...step.averages)) {
      made.append(
        this.trace.options.do_sample
          ? " It was drawn; another has a larger average."
          : " Another has a larger average, which does not decide alone in this method.",
      );
    }
    return made;
  }

  title() {
    const what = this.trace.options.boundaries === "exact" ? "Byte" : "Token";
    return `${what} ${this.selected + 1} of ${this.tokens.length}`;
  }

  /** Show a token in the panel, or nothing. */
  show(i) {
    if (this.selected !== undefined) this.tokens[this.selected].setAttribute("aria-selected", "false");
    this.selected = i;
    this.onShow(i);
    const { panel, tokens } = this;
    document.body.classList.toggle("open", i !== undefined);
    panel.hidden = i === undefined;
    if (i === undefined) return;
    tokens[i].setAttribute("aria-selected", "true");
    const step = this.trace.steps[i];
    const close = element("button", { type: "button", class: "close", "aria-label": "close" }, "×");
    close.addEventListener("click", () => this.show(undefined));
    panel.replaceChildren(
      close,
      element("h2", {}, this.title()),
      this.sentence(step),
      this.unionTable(step, SHOWN_SLOTS),
    );
    if (step.averages.length > SHOWN_SLOTS) {
      const more = element("button", { type: "button", class: "more" }, `all ${step.averages.length} slots`);
      more.addEventListener("click", () => {
        panel.querySelector("table").replaceWith(this.unionTable(step, Infinity));
        more.remove();
      });
      panel.append(more);
    }
    if (small.matches) tokens[i].scrollIntoView({ block: "nearest" });
  }

  /** No token is marked any more, because another text has the panel. */
  unmark() {
    if (this.selected !== undefined) this.tokens[this.selected].setAttribute("aria-selected", "false");
    this.selected = undefined;
  }

  setTabStop(i) {
    this.tokens[this.focused ?? 0].tabIndex = -1;
    this.focused = i;
    this.tokens[i].tabIndex = 0;
  }

  /** One token is in the tab order; the arrow keys move to the others. */
  focus(i) {
    this.setTabStop(i);
    this.tokens[i].focus();
  }

  goToNext(decided, direction) {
    const n = this.tokens.length;
    const start = this.selected ?? (direction > 0 ? -1 : n);
    for (let step = 1; step <= n; step++) {
      const i = (((start + direction * step) % n) + n) % n;
      if (this.trace.steps[i].decided === decided) return this.focus(i);
    }
  }

  stepOf(event) {
    const token = event.target.closest(".token");
    return token ? Number(token.dataset.step) : undefined;
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const i = this.stepOf(event);
    const last = this.tokens.length - 1;
    const moves = { ArrowRight: i + 1, ArrowDown: i + 1, ArrowLeft: i - 1, ArrowUp: i - 1, Home: 0, End: last };
    if (event.key in moves) this.focus(Math.min(last, Math.max(0, moves[event.key])));
    else if (event.key === "n" || event.key === "p") this.goToNext("overruled", event.key === "n" ? 1 : -1);
    else if (event.key === "Escape") this.show(undefined);
    else return;
    event.preventDefault();
  }
}
