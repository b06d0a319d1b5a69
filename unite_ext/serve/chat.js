"use strict";
// The chat at "/": asks this server's own interface, and shows who decided each token of its answers (tokens.js).
const $ = (id) => document.getElementById(id);
const EXAMPLES = [
  "Mia has 12 pens, finds 18 more and then loses 5. How many pens does Mia have now?",
  "Lucy has 36 apples, gives Omar a quarter of them and then gets 5 new ones. How many has Lucy now?",
];
const REASONS = { stop: "Ended.", length: "Ended by the limit of tokens." };

const messages = [];
const views = [];
let model = "unite";
let running; // the AbortController of the answer that is being written

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function openSettings(open) {
  $("options").hidden = !open;
  $("settings").setAttribute("aria-expanded", String(open));
}

/** The server's error as a person reads it. */
async function errorOf(response) {
  if (response.status === 401) {
    $("key-field").hidden = false;
    openSettings(true);
  }
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}

async function readModel() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) return say(await errorOf(response), true);
  const [{ id, unite }] = (await response.json()).data;
  model = id;
  say("");
  const members = $("members");
  members.replaceChildren();
  unite.members.forEach((name, m) =>
    members.append(m ? " + " : "", element("b", {}, name), name === unite.primary ? " (primary)" : ""),
  );
  $("k").placeholder = unite.k;
  $("max-tokens").max = unite.max_tokens;
  $("max-tokens").placeholder = unite.max_tokens;
  const rows = unite.members.map((name, m) => {
    const value = unite.weights[m] * unite.members.length;
    const range = element("input", { type: "range", min: "0", max: "4", step: "0.1", value: value.toFixed(1) });
    const shown = element("output", {}, value.toFixed(1));
    range.addEventListener("input", () => {
      range.dataset.changed = "1";
      shown.textContent = Number(range.value).toFixed(1);
    });
    return element("label", {}, element("span", { class: "name" }, name), range, shown);
  });
  $("weights").replaceChildren(element("legend", {}, "Weights"), ...rows);
  $("weights").hidden = unite.members.length < 2;
}

/** What the settings ask for; what was left alone is the server's to decide. */
function settings() {
  const unite = { trace: true };
  const ranges = [...$("weights").querySelectorAll("input")];
  if (ranges.some((range) => range.dataset.changed)) unite.weights = ranges.map((range) => Number(range.value));
  if ($("k").value) unite.k = Number($("k").value);
  if ($("boundaries").value) unite.boundaries = $("boundaries").value;
  const asked = { unite };
  if ($("temperature").value) asked.temperature = Number($("temperature").value);
  if ($("max-tokens").value) asked.max_tokens = Number($("max-tokens").value);
  return asked;
}

/** The data of server-sent events, as they come. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (data.length) yield data.join("\n");
    }
  }
}

/** A place for an answer in the log. */
function answerPlace() {
  const number = views.length + 1;
  const list = element("div", {
    class: "tokens",
    role: "listbox",
    dir: "auto",
    "aria-orientation": "horizontal",
    "aria-label": `Tokens of answer ${number}; the arrow keys go from one to the next`,
  });
  const legend = element("nav", { class: "legend", "aria-label": "Who decided: go to the next such token" });
  const end = element("p", { class: "quiet" });
  const whole = element("article", { class: "answer" }, list, element("div", { class: "about" }, legend, end));
  $("log").append(whole);
  const view = new TokenView(list, $("panel"), {
    onShow: (i) => i !== undefined && views.filter((other) => other !== view).forEach((other) => other.unmark()),
  });
  views.push(view);
  return { whole, view, legend, end };
}

/** Take a piece of a trace into what the view shows. */
function take(view, piece) {
  piece.tokens.forEach((texts, m) => Object.assign(view.trace.tokens[m], texts));
  view.trace.steps.push(...piece.steps);
  view.addTokens();
}

async function answer(place, signal) {
  const body = { model, messages, stream: true, ...settings() };
  const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error(await errorOf(response));
  let finish = "";
  for await (const data of eventsOf(response)) {
    if (data === "[DONE]") break;
    const event = JSON.parse(data);
    const page = document.documentElement; // follows the text unless its reader has scrolled back
    const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 40;
    if (event.error) throw new Error(event.error.message);
    if (event.unite) place.view.start({ ...event.unite, steps: [], tokens: event.unite.members.map(() => ({})) });
    for (const choice of event.choices ?? []) {
      place.text += choice.delta.content ?? "";
      if (choice.unite) take(place.view, choice.unite);
      finish = choice.finish_reason ?? finish;
    }
    if (atEnd && event.choices?.length) place.whole.scrollIntoView({ block: "end", behavior: "instant" });
  }
  return finish;
}

async function ask(question) {
  if (running || !question.trim()) return;
  const controller = (running = new AbortController());
  messages.push({ role: "user", content: question });
  const asked = element("div", { class: "user", dir: "auto" });
  asked.textContent = question;
  $("log").append(asked);
  $("empty").hidden = true;
  const place = { ...answerPlace(), text: "" };
  setRunning(true);
  say("The members are reading …");
  let keeps = true;
  try {
    const finish = await answer(place, controller.signal);
    place.end.textContent = REASONS[finish] ?? "";
    say("");
  } catch (error) {
    if (error.name === "AbortError") {
      place.end.textContent = "Stopped.";
      say("");
    } else {
      say(error.message, true);
      keeps = place.text !== "";
    }
  }
  running = undefined;
  if (keeps) {
    messages.push({ role: "assistant", content: place.text });
    if (place.view.trace) place.legend.replaceChildren(...place.view.legend());
    place.whole.setAttribute("aria-busy", "false");
  } else {
    // Nothing was answered: the question can be sent again.
    messages.pop();
    views.pop();
    place.whole.remove();
    asked.remove();
    $("question").value = question;
    $("empty").hidden = messages.length > 0;
  }
  setRunning(false);
}

function setRunning(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  $("clear").disabled = on || !messages.length;
  if (on) $("stop").focus();
  else $("question").focus({ preventScroll: true });
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value;
  if (running || !question.trim()) return;
  $("question").value = "";
  ask(question);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  messages.length = views.length = 0;
  $("log").replaceChildren();
  $("panel").hidden = true;
  document.body.classList.remove("open");
  $("empty").hidden = false;
  setRunning(false);
});
$("settings").addEventListener("click", () => openSettings($("options").hidden));
$("options").addEventListener("submit", (event) => event.preventDefault());
$("key").addEventListener("change", readModel);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
});
for (const text of EXAMPLES) {
  const button = element("button", { type: "button" }, text);
  button.addEventListener("click", () => ask(text));
  $("examples").append(button);
}
readModel().catch((error) => say(error.message, true));
