"use strict";
// State lies in the address: #a=RUN&b=RUN&d=t2i&f=all&s=WORDS&q=NUMBER, or q=typed: the words themselves
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SHOWN = 200; // entries of the list
const RESULTS = 10;
const TYPED = "typed"; // in place of a query's number: what stands in the search field
const captionsOf = data.images.map(() => []);
data.imageOfCaption.forEach((image, caption) => captionsOf[image].push(caption));
const index = new MiniSearch({ fields: ["text"], searchOptions: { prefix: true, combineWith: "AND" } });
index.addAll(data.captions.map((text, id) => ({ id, text })));
let state = {};
let listed = [];

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function thumbnail(image) {
  const perSheet = data.columns * data.columns;
  const place = image % perSheet;
  const made = element("span", { className: `thumb s${Math.floor(image / perSheet)}` });
  made.style.backgroundPosition =
    `-${(place % data.columns) * data.side}px -${Math.floor(place / data.columns) * data.side}px`;
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", data.images[image]);
  return made;
}

function text(content) {
  return element("span", { dir: "auto", textContent: content });
}

// As `printable` of Python has the captions: what moves a cursor or turns the direction is shown as an escape.
function printable(content) {
  return content.replace(/(?![\u200c\u200d\n\t])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (character) => {
    const code = character.codePointAt(0).toString(16);
    const [mark, digits] = code.length > 4 ? ["U", 8] : code.length > 2 ? ["u", 4] : ["x", 2];
    return character === "\r" ? "\\r" : `\\${mark}${code.padStart(digits, "0")}`;
  });
}

function run(name) {
  return data.runs.find((r) => r.name === name);
}

const towers = new Map(); // unpacked when a text is typed for the first time
function towerOf(name) {
  const packed = $(`tower-${data.runs.findIndex((r) => r.name === name)}`);
  if (packed && !towers.has(name)) towers.set(name, unpackTower(JSON.parse(packed.textContent)));
  return towers.get(name);
}

function foundBy(results) {
  const counts = new Map();
  results.top.forEach((row) => row.forEach((item) => counts.set(item, (counts.get(item) || 0) + 1)));
  return counts;
}

function typed() {
  return state.s.trim();
}

// The captions that are what was typed, to the letter: their lists are exact, so nothing is computed.
function sameAsTyped() {
  const shown = printable(typed());
  return data.captions.flatMap((caption, number) => (caption.trim() === shown ? [number] : []));
}

// The queries of the list, in order, each with what stands at the right of it.
function queries() {
  const results = run(state.a)[state.d];
  const other = run(state.a)[state.d === "t2i" ? "i2t" : "t2i"];
  let numbers = results.rank.map((_, number) => number);
  if (typed()) {
    const captions = [...new Set([...sameAsTyped(), ...index.search(state.s).map((found) => found.id)])];
    numbers = state.d === "t2i" ? captions : [...new Set(captions.map((c) => data.imageOfCaption[c]))];
  }
  const rank = (q) => results.rank[q];
  if (state.f === "hits") numbers = numbers.filter((q) => rank(q) === 1);
  if (state.f === "misses") numbers = numbers.filter((q) => rank(q) > 10);
  if (state.f === "tied") numbers = numbers.filter((q) => results.ties[q] > 0);
  if (state.f === "worst") numbers = [...numbers].sort((x, y) => rank(y) - rank(x));
  if (state.f === "hubs") {
    const counts = foundBy(other); // a query is an item of the other direction
    const count = (q) => counts.get(q) || 0;
    numbers = [...numbers].sort((x, y) => count(y) - count(x));
    return numbers.map((q) => ({ q, note: `in ${count(q)} lists` }));
  }
  return numbers.map((q) => ({ q, note: `rank ${rank(q)}` }));
}

function drawList() {
  const found = queries();
  const total = run(state.a)[state.d].rank.length;
  const more = found.length > SHOWN ? `, the first ${SHOWN} shown` : "";
  $("count").textContent = `${found.length.toLocaleString("en")} of ${total.toLocaleString("en")} queries${more}`;
  const own = state.d === "t2i" && typed() && !sameAsTyped().length;
  listed = [...(own ? [{ q: TYPED, note: "your own text" }] : []), ...found.slice(0, SHOWN)];
  $("list").replaceChildren(...listed.map(({ q, note }) => {
    const label = q === TYPED ? [text(printable(typed()))]
      : state.d === "t2i" ? [text(data.captions[q])]
        : [thumbnail(q), element("span", { textContent: data.images[q] })];
    const button = element("button", { type: "button", onclick: () => go({ q }) },
      ...label, element("span", { className: "rank", textContent: note }));
    button.dataset.q = q;
    return element("li", {}, button);
  }));
}

// An item that was found; a click asks with it.
function result(item, note, isRight = false) {
  const captions = state.d === "t2i";
  const button = element("button", {
    type: "button", className: isRight ? "right" : "",
    onclick: () => go({ d: captions ? "i2t" : "t2i", q: item, s: "", f: "all" }),
  }, captions ? thumbnail(item) : text(data.captions[item]), element("small", { textContent: note }));
  return element("li", {}, button);
}

// What a run finds for the text in the search field, or how to ask it where its tower is not in the page.
function typedResults(name) {
  const tower = towerOf(name);
  const heading = element("h2", { textContent: name });
  if (!tower) {
    const words = printable(typed()).replaceAll("'", "'\\''");
    const command = `python -m mmlib search ${name} ${words.startsWith("-") ? "-- " : ""}'${words}'`;
    return element("section", {}, heading, element("p", { className: "own" },
      "This page does not hold the text encoder of this run (a pretrained one, one that is too large, or one of an"
      + " older evaluation). Ask the model itself, over a folder that it has indexed; in a POSIX shell (sh, bash, zsh): ",
      element("code", { textContent: command })));
  }
  const items = nearestImages(tower, typed(), RESULTS).map(({ item, similarity }, place) =>
    result(item, `${place + 1} · ≈ ${similarity.toFixed(2)}`));
  return element("section", {}, heading,
    element("p", { className: "own" }, element("strong", { textContent: "approximate" }),
      `: computed in this page from weights rounded to ${tower.bits} bits; the lists of the split's own captions are exact`),
    element("ol", { className: "results pictures" }, ...items));
}

function drawResults() {
  const captions = state.d === "t2i";
  for (const button of $("list").querySelectorAll("button")) {
    button.setAttribute("aria-current", button.dataset.q === String(state.q));
  }
  if (state.q === null) {
    const hint = state.d === "i2t" && typed() ? ": no caption has these words; to ask with them, choose caption → images" : "";
    $("query").replaceChildren(`nothing to show${hint}`);
    $("runs").replaceChildren();
    return;
  }
  const names = [state.a, state.b].filter((name, place, all) => name && all.indexOf(name) === place);
  if (state.q === TYPED) {
    $("query").replaceChildren(text(printable(typed())));
    $("runs").replaceChildren(...names.map(typedResults));
    return;
  }
  $("query").replaceChildren(captions ? text(data.captions[state.q]) : thumbnail(state.q),
    captions ? "" : element("span", { textContent: data.images[state.q] }));
  $("runs").replaceChildren(...names.map((name) => {
    const results = run(name)[state.d];
    const right = new Set(captions ? [data.imageOfCaption[state.q]] : captionsOf[state.q]);
    const ties = results.ties[state.q] ? `, ${results.ties[state.q]} of them tied with it` : "";
    const rank = results.rank[state.q];
    const before = rank === 1 ? "a right one stands first" : `the first right one has rank ${rank}${ties}`;
    const items = results.top[state.q].map((item, place) => {
      const isRight = right.has(item);
      const note = `${place + 1} · ${(results.similarity[state.q][place] / 1000).toFixed(3)}${isRight ? " · right ✓" : ""}`;
      return result(item, note, isRight);
    });
    return element("section", {},
      element("h2", { textContent: name }),
      element("p", { textContent: `${before} · R@1 of all queries ${results.hits} %` }),
      element("ol", { className: captions ? "results pictures" : "results" }, ...items));
  }));
}

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const known = (name, otherwise) => (run(given.get(name)) ? given.get(name) : otherwise);
  const d = given.get("d") === "i2t" ? "i2t" : "t2i";
  const filters = [...$("filter").options].map((option) => option.value);
  const q = Number.parseInt(given.get("q") ?? "", 10);
  state = {
    a: known("a", data.runs[data.runs.length - 1].name),
    b: known("b", ""),
    d,
    f: filters.includes(given.get("f")) ? given.get("f") : "all",
    s: given.get("s") ?? "",
  };
  drawList();
  const isKnown = given.get("q") === TYPED ? listed[0]?.q === TYPED : q >= 0 && q < run(state.a)[d].rank.length;
  const first = listed.find((entry) => entry.q !== TYPED) ?? listed[0]; // captions before what needs computing
  state.q = isKnown ? (given.get("q") === TYPED ? TYPED : q) : first ? first.q : null;
  $("run-a").value = state.a;
  $("run-b").value = state.b;
  $("direction").value = state.d;
  $("filter").value = state.f;
  if ($("search").value !== state.s) $("search").value = state.s;
  drawResults();
}

function go(changes) {
  const next = { ...state, ...changes };
  if (!("q" in changes)) delete next.q; // another list begins with its first query
  const address = new URLSearchParams(Object.entries(next).filter(([, value]) => value !== "" && value !== null));
  history.replaceState(null, "", `#${address}`);
  read();
}

for (const { name } of data.runs) {
  $("run-a").append(element("option", { value: name, textContent: name }));
  $("run-b").append(element("option", { value: name, textContent: name }));
}
$("run-b").prepend(element("option", { value: "", textContent: "none" }));
$("run-a").onchange = () => go({ a: $("run-a").value, q: state.q });
$("run-b").onchange = () => go({ b: $("run-b").value, q: state.q });
$("direction").onchange = () => go({ d: $("direction").value });
$("filter").onchange = () => go({ f: $("filter").value });
$("search").oninput = () => go({ s: $("search").value });
document.onkeydown = (event) => {
  if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && event.target !== $("search")) {
    $("search").focus();
    event.preventDefault();
  }
  if (event.key === "Enter" && event.target === $("search") && listed[0]?.q === TYPED) go({ q: TYPED });
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !listed.length) return;
  event.preventDefault();
  const place = listed.findIndex(({ q }) => q === state.q);
  go({ q: listed[Math.max(0, Math.min(listed.length - 1, place + step))].q });
  const current = $("list").querySelector("[aria-current=true]");
  if (current) current.scrollIntoView({ block: "nearest" });
};
window.onhashchange = read;
$("explore").hidden = false;
read();
