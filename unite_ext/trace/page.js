"use strict";
// Every text is put into the page as a text node, never as markup: models write what they like.
const traces = JSON.parse(document.getElementById("data").textContent).traces;
const $ = (id) => document.getElementById(id);
const ORDER = ["agreement", "primary", "overruled", "gated"];
const NAMES = { agreement: "agreement", primary: "primary", overruled: "primary overruled", gated: "gated" };
const SHOWN_SLOTS = 20; // of up to 1,024: more would make moving from token to token slow

// On a small screen the union lies over the foot of the text: there it waits to be asked, and the token moves clear of it.
const small = matchMedia("(max-width: 56rem)");

let trace, tokens, selected, focused;

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

// Control characters, and those that would reorder or hide what stands around them.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/u;
const SIGNS = { "\n": "↵", "\t": "⇥", " ": "␣" };

/** Text with its invisible characters made visible; in running text spaces stay spaces and lines break. */
function visible(text, running) {
  const made = document.createDocumentFragment();
  for (const character of text) {
    // In a table every kind of space counts; in running text only what cannot be seen to be there.
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

const ownText = (member, id) => (id < 0 ? "" : trace.tokens[member][id]);
const isName = (member, id) => trace.eos_token_ids[member].includes(id);

function showTrace(row) {
  trace = traces[row];
  selected = focused = undefined;
  const members = $("members");
  members.replaceChildren();
  trace.members.forEach((name, m) => {
    members.append(m ? " + " : "", element("b", {}, name), m === trace.primary ? " (primary)" : "");
  });
  const options = Object.entries(trace.options).filter(([name, value]) => name !== "primary" && value !== null);
  $("options").textContent = options
    .map(([name, value]) => `${name} = ${typeof value === "string" ? value : JSON.stringify(value)}`)
    .join(", ");
  showPrompt();
  showTotals();
  tokens = trace.steps.map((step, i) => {
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
      const id = step.ids[step.winner][trace.primary];
      const name = id >= 0 && !isName(trace.primary, id) ? ownText(trace.primary, id) : "■";
      span.append(element("span", { class: "sign" }, name));
      span.setAttribute("aria-label", name === "■" ? "end of text" : `bytes ${name}`);
    }
    return span;
  });
  $("text").replaceChildren(...tokens);
  const reasons = {
    eos: "Ended by an end-of-text token.",
    stop: "Ended by a stop string.",
    length: "Ended by the limit of tokens.",
  };
  $("end").textContent = reasons[trace.finish_reason] || "";
}

function showPrompt() {
  const prompt = $("prompt");
  prompt.replaceChildren();
  if (typeof trace.prompt === "string") prompt.textContent = trace.prompt;
  else {
    for (const message of trace.prompt || []) {
      const content = typeof message.content === "string" ? message.content : JSON.stringify(message.content);
      prompt.append(element("b", {}, `${message.role}: `), content, "\n");
    }
  }
}

function showTotals() {
  const steps = trace.steps;
  const count = Object.fromEntries(ORDER.map((name) => [name, steps.filter((s) => s.decided === name).length]));
  const asked = steps.length - count.gated;
  const tile = (figure, label) =>
    element("div", { class: "tile" }, element("b", {}, figure), element("span", {}, label));
  const each = element("table", { "aria-label": "How often each member wanted another token" });
  trace.members.forEach((name, m) => {
    const times = steps.filter((s) => s.decided !== "gated" && s.favorites[m] !== s.winner).length;
    const track = element("td", { class: "track" });
    track.append(bar(asked ? times / asked : 0));
    each.append(
      element(
        "tr",
        {},
        element("th", { scope: "row" }, name),
        track,
        element("td", {}, `${times} (${percent(asked ? times / asked : 0)})`),
      ),
    );
  });
  const wide = element(
    "div",
    { class: "tile each" },
    element("span", {}, "Wanted another token than the one taken"),
    each,
  );
  $("totals").replaceChildren(
    tile(String(steps.length), "steps"),
    tile(percent(asked ? count.agreement / asked : 1), `agreement (${count.agreement} of ${asked})`),
    tile(String(count.gated), "steps gated"),
    wide,
  );
  const legend = ORDER.filter((name) => count[name] || name !== "gated").map((name) => {
    const button = element(
      "button",
      { type: "button", title: `next: ${NAMES[name]}` },
      element("span", { class: `swatch ${name}` }),
      `${NAMES[name]} ${count[name]}`,
    );
    button.disabled = !count[name];
    button.addEventListener("click", () => goToNext(name, 1));
    return button;
  });
  $("legend").replaceChildren(...legend);
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

function tokenText(member, id, whole) {
  if (id < 0) return element("span", { class: "quiet", title: "has no token for it" }, "–");
  const text = ownText(member, id);
  const made = element("span", { class: isName(member, id) ? "text special" : "text" });
  made.append(visible(text, false));
  if (text !== whole && !isName(member, id)) {
    made.append(element("span", { class: "sign" }, "…"));
    made.title = "its first sub-token";
  }
  return made;
}

function unionTable(step, limit) {
  const slots = step.averages.map((_, slot) => slot);
  slots.sort((a, b) => (b === step.winner) - (a === step.winner) || step.averages[b] - step.averages[a] || a - b);
  const head = element("tr", {}, element("th", { scope: "col" }, "average"));
  trace.members.forEach((name) => head.append(element("th", { scope: "col" }, name)));
  const body = element("tbody");
  for (const slot of slots.slice(0, limit)) {
    const speller = step.spellers[slot];
    const id = step.ids[slot][speller];
    const whole = ownText(speller, id);
    const row = element("tr", { class: slot === step.winner ? "taken" : undefined });
    row.append(
      cell(
        "th",
        { scope: "row", class: "cell average" },
        tokenText(speller, id, whole),
        probability(step.averages[slot]),
        step.averages[slot],
      ),
    );
    step.ids[slot].forEach((id, m) => {
      const own = step.decided !== "gated" && step.favorites[m] === slot;
      const p = step.probs[slot][m];
      row.append(
        cell(
          "td",
          { class: own ? "cell own" : "cell", title: own ? "its own choice" : undefined },
          tokenText(m, id, whole),
          probability(p),
          p,
        ),
      );
    });
    body.append(row);
  }
  const table = element("table", { class: "union" }, element("thead", {}, head), body);
  table.style.minWidth = `${(trace.members.length > 3 ? 5.6 : 4.6) * (trace.members.length + 1)}rem`; // with more members the panel scrolls sideways
  return table;
}

function sentence(step) {
  const made = element("p", {}, element("span", { class: `mark ${step.decided}` }, NAMES[step.decided]), " ");
  const slot = step.favorites[trace.primary];
  if (step.decided === "gated") made.append(`${trace.members[trace.primary]} was sure of it; the others were not asked.`);
  if (step.decided === "overruled") {
    const id = step.ids[slot][trace.primary];
    made.append(
      `${trace.members[trace.primary]} wanted `,
      tokenText(trace.primary, id, ownText(trace.primary, id)),
      ` (${probability(step.probs[slot][trace.primary])}).`,
    );
  }
  if (step.decided === "primary") {
    const others = trace.members.filter((_, m) => step.favorites[m] !== step.winner);
    made.append(`${others.join(", ")} wanted something else.`);
  }
  if (step.averages[step.winner] < Math.max(...step.averages)) {
    made.append(
      trace.options.do_sample
        ? " It was drawn; another has a larger average."
        : " Another has a larger average, which does not decide alone in this method.",
    );
  }
  return made;
}

function show(i) {
  if (selected !== undefined) tokens[selected].setAttribute("aria-selected", "false");
  selected = i;
  const panel = $("panel");
  document.body.classList.toggle("open", i !== undefined);
  panel.hidden = i === undefined;
  if (i === undefined) return;
  tokens[i].setAttribute("aria-selected", "true");
  const step = trace.steps[i];
  const close = element("button", { type: "button", class: "close", "aria-label": "close" }, "×");
  close.addEventListener("click", () => show(undefined));
  panel.replaceChildren(
    close,
    element("h2", {}, `Token ${i + 1} of ${tokens.length}`),
    sentence(step),
    unionTable(step, SHOWN_SLOTS),
  );
  if (step.averages.length > SHOWN_SLOTS) {
    const more = element("button", { type: "button", class: "more" }, `all ${step.averages.length} slots`);
    more.addEventListener("click", () => {
      panel.querySelector("table").replaceWith(unionTable(step, Infinity));
      more.remove();
    });
    panel.append(more);
  }
  if (small.matches) tokens[i].scrollIntoView({ block: "nearest" });
}

/** One token is in the tab order; the arrow keys move to the others. */
function focusToken(i) {
  if (focused !== undefined) tokens[focused].tabIndex = -1;
  else tokens[0].tabIndex = -1;
  focused = i;
  tokens[i].tabIndex = 0;
  tokens[i].focus();
}

function goToNext(decided, direction) {
  const n = tokens.length;
  const start = selected ?? (direction > 0 ? -1 : n);
  for (let step = 1; step <= n; step++) {
    const i = (((start + direction * step) % n) + n) % n;
    if (trace.steps[i].decided === decided) return focusToken(i);
  }
}

const stepOf = (event) => {
  const token = event.target.closest(".token");
  return token ? Number(token.dataset.step) : undefined;
};

$("text").addEventListener("pointerover", (event) => {
  const i = stepOf(event);
  if (event.pointerType === "mouse" && i !== undefined && i !== selected) show(i);
});
$("text").addEventListener("pointerleave", (event) => {
  if (event.pointerType === "mouse" && focused !== undefined && focused !== selected) show(focused);
});
$("text").addEventListener("click", (event) => {
  const i = stepOf(event);
  if (i !== undefined) focusToken(i);
});
$("text").addEventListener("focusin", (event) => {
  const i = stepOf(event);
  if (i === undefined) return;
  focused = i;
  show(i);
  if (location.protocol === "about:") return; // a frame of a notebook, which has no address
  history.replaceState(null, "", `#${traces.length > 1 ? `${traces.indexOf(trace) + 1}.` : ""}${i + 1}`);
});
$("text").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const i = stepOf(event);
  const last = tokens.length - 1;
  const moves = { ArrowRight: i + 1, ArrowDown: i + 1, ArrowLeft: i - 1, ArrowUp: i - 1, Home: 0, End: last };
  if (event.key in moves) focusToken(Math.min(last, Math.max(0, moves[event.key])));
  else if (event.key === "n" || event.key === "p") goToNext("overruled", event.key === "n" ? 1 : -1);
  else if (event.key === "Escape") show(undefined);
  else return;
  event.preventDefault();
});

/** #12 is token 12, #2.12 token 12 of the second text. */
function fromAddress() {
  const found = /^#(?:(\d+)\.)?(\d+)$/.exec(location.hash);
  const row = found && found[1] ? Number(found[1]) - 1 : 0;
  select.value = String(row < traces.length ? row : 0);
  showTrace(Number(select.value));
  const wanted = found ? Number(found[2]) - 1 : mostTelling();
  show(tokens[wanted] && (found || !small.matches) ? wanted : undefined);
  if (found && tokens[wanted] && tokens[wanted].getBoundingClientRect().bottom > innerHeight) {
    tokens[wanted].scrollIntoView({ block: "center" });
  }
}

/** What a reader sees first: a token that the members did not agree on, if there is one. */
function mostTelling() {
  for (const name of ["overruled", "primary"]) {
    const i = trace.steps.findIndex((step) => step.decided === name);
    if (i >= 0) return i;
  }
  return 0;
}

const select = $("choose").querySelector("select");
traces.forEach((one, row) =>
  select.append(element("option", { value: String(row) }, `${row + 1}: ${one.text.trim().slice(0, 60)}`)),
);
select.addEventListener("change", () => {
  showTrace(Number(select.value));
  show(tokens.length ? mostTelling() : undefined);
});
$("choose").hidden = traces.length < 2;
window.addEventListener("hashchange", fromAddress);
fromAddress();
