"use strict";
// The page of saved traces: chooses one, shows its tokens (tokens.js), and its totals.
const traces = JSON.parse(document.getElementById("data").textContent).traces;
const $ = (id) => document.getElementById(id);

let trace;

const view = new TokenView($("text"), $("panel"), {
  onFocus(i) {
    if (location.protocol === "about:") return; // a frame of a notebook, which has no address
    history.replaceState(null, "", `#${traces.length > 1 ? `${traces.indexOf(trace) + 1}.` : ""}${i + 1}`);
  },
});

function showTrace(row) {
  trace = traces[row];
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
  view.start(trace);
  showTotals();
  const reasons = {
    eos: "Ended by an end-of-text token.",
    stop: "Ended by a stop string.",
    length: "Ended by the limit of tokens.",
  };
  const away = trace.members.flatMap((name, m) => {
    const number = (trace.missing_from || [])[m];
    return typeof number === "number" ? [`${name} stayed away from token ${number + 1} on: the others went on without it.`] : [];
  });
  $("end").textContent = [reasons[trace.finish_reason] || "", ...away].filter(Boolean).join(" ");
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
  const [agreed, gated] = [view.count("agreement"), view.count("gated")];
  const asked = steps.length - gated;
  const tile = (figure, label) =>
    element("div", { class: "tile" }, element("b", {}, figure), element("span", {}, label));
  const what = trace.options.boundaries === "exact" ? "byte" : "token";
  const each = element("table", { "aria-label": `How often each member wanted another ${what}` });
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
    element("span", {}, `Wanted another ${what} than the one taken`),
    each,
  );
  $("totals").replaceChildren(
    tile(String(steps.length), "steps"),
    tile(percent(asked ? agreed / asked : 1), `agreement (${agreed} of ${asked})`),
    tile(String(gated), "steps gated"),
    wide,
  );
  $("legend").replaceChildren(...view.legend());
}

/** #12 is token 12, #2.12 token 12 of the second text. */
function fromAddress() {
  const found = /^#(?:(\d+)\.)?(\d+)$/.exec(location.hash);
  const row = found && found[1] ? Number(found[1]) - 1 : 0;
  select.value = String(row < traces.length ? row : 0);
  showTrace(Number(select.value));
  const wanted = found ? Number(found[2]) - 1 : mostTelling();
  view.show(view.tokens[wanted] && (found || !small.matches) ? wanted : undefined);
  if (found && view.tokens[wanted] && view.tokens[wanted].getBoundingClientRect().bottom > innerHeight) {
    view.tokens[wanted].scrollIntoView({ block: "center" });
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
  view.show(view.tokens.length ? mostTelling() : undefined);
});
$("choose").hidden = traces.length < 2;
window.addEventListener("hashchange", fromAddress);
fromAddress();
