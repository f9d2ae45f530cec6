"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const questions = data.questions;
const ROW_HEIGHT = 58; // as in the style sheet
const ROWS_BEYOND = 10; // rows that are made above and below those that are seen

const STATUS_NAMES = { right: "right", partly: "partly right", wrong: "wrong" };

// What the two menus offer: value -> [text, which questions, whether it is offered].
const FILTERS = {
  all: ["all questions", () => true, true],
  right: ["right (exact match)", (question) => question.status === "right", true],
  missed: ["not right", (question) => question.status !== "right", true],
  partly: ["partly right (F1 above 0)", (question) => question.status === "partly", true],
  wrong: ["wrong (F1 of 0)", (question) => question.status === "wrong", true],
  unpredicted: ["without a prediction", (question) => question.prediction === null, data.totals.unpredicted > 0],
  answerable: ["with an answer", (question) => question.answers.length > 0, data.is_v2],
  unanswerable: ["without an answer", (question) => question.answers.length === 0, data.is_v2],
};
const ORDERS = {
  file: ["as in the file", null],
  f1: ["lowest F1 first", (question) => question.f1],
  confident: ["most probable first", (question) => -topProbability(question)],
  doubtful: ["least probable first", (question) => topProbability(question)],
};

const list = document.getElementById("list");
const rows = document.getElementById("rows");
const detail = document.getElementById("detail");
const search = document.getElementById("search");
const statusMenu = document.getElementById("status");
const orderMenu = document.getElementById("order");

let shown = []; // the questions in the list, in its order
let chosen = null; // the question in the detail

function topProbability(question) {
  return question.n_best ? question.n_best[0][1] : 0;
}

// A new element with attributes and children: elements, and texts, which remain texts whatever is in them.
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function percent(value) {
  return (100 * value).toFixed(1) + " %";
}

// ---- the list

function haystack(question) {
  const paragraph = data.paragraphs[question.paragraph];
  if (paragraph.lower === undefined) {
    paragraph.lower = (paragraph.title + "\n" + paragraph.context).toLowerCase();
  }
  if (question.lower === undefined) {
    const answers = question.answers.map((answer) => answer[0]);
    question.lower = [question.text, question.prediction || "", question.id, ...answers].join("\n").toLowerCase();
  }
  return [question.lower, paragraph.lower];
}

function updateList() {
  const words = search.value.trim().toLowerCase();
  const accepts = FILTERS[statusMenu.value][1];
  shown = questions.filter(
    (question) => accepts(question) && (words === "" || haystack(question).some((text) => text.includes(words)))
  );
  const key = ORDERS[orderMenu.value][1];
  if (key !== null) {
    shown = shown.map((question) => [key(question), question]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1]);
  }
  document.getElementById("shown").textContent =
    shown.length.toLocaleString("en") + " of " + questions.length.toLocaleString("en");
  rows.style.height = shown.length * ROW_HEIGHT + "px";
  list.scrollTop = 0;
  drawRows();
}

// Makes elements for the rows that are seen, and a few more; thousands would make the page slow.
function drawRows() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - ROWS_BEYOND);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + ROWS_BEYOND);
  rows.replaceChildren(...shown.slice(first, last).map((question, index) => makeRow(question, first + index)));
}

function makeRow(question, index) {
  const status = element("span", { class: "answer" });
  status.append(element("b", { class: question.status }, STATUS_NAMES[question.status]), "  ");
  status.append(element("bdi", {}, answerText(question)));
  const text = element("span", { dir: "auto" }, question.text);
  const row = element("button", { class: "row", type: "button", tabindex: "-1" }, text, status);
  row.style.top = index * ROW_HEIGHT + "px";
  row.setAttribute("aria-current", String(question === chosen));
  row.addEventListener("click", () => choose(question, true));
  return row;
}

function answerText(question) {
  if (question.prediction === null) {
    return "(no prediction)";
  }
  return question.prediction === "" ? "(no answer)" : question.prediction;
}

function scrollToChosen() {
  const top = shown.indexOf(chosen) * ROW_HEIGHT;
  if (top < list.scrollTop || top + ROW_HEIGHT > list.scrollTop + list.clientHeight) {
    list.scrollTop = Math.max(0, top - list.clientHeight / 2);
  }
}

// ---- one question

// [start, end] of every place where the words of `text` stand in `context`, whatever blanks are between them.
function places(text, context) {
  const words = text.split(/\s+/u).filter((word) => word !== "");
  if (words.length === 0) {
    return [];
  }
  const pattern = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("\\s+");
  return Array.from(context.matchAll(new RegExp(pattern, "g")), (match) => [match.index, match.index + match[0].length]);
}

// Where a true answer stands. The file counts characters, JavaScript those beyond U+FFFF twice.
function truePlace(text, start, context) {
  const before = /[\ud800-\udfff]/.test(context) ? Array.from(context).slice(0, start).join("").length : start;
  if (context.startsWith(text, before)) {
    return [[before, before + text.length]];
  }
  return places(text, context).slice(0, 1);
}

// The place of the prediction, of several that which touches a true answer, and how many there are.
function predictedPlaces(question, context, truePlaces) {
  const found = places(question.prediction || "", context);
  const touching = found.find(([start, end]) => truePlaces.some((place) => place[0] < end && start < place[1]));
  return { place: touching || found[0], count: found.length };
}

// The context in pieces, those that belong to `marks`, {start, end, kind} each, marked with the kinds.
function markedContext(context, marks) {
  const borders = new Set([0, context.length]);
  for (const { start, end } of marks) {
    borders.add(start).add(end);
  }
  const sorted = [...borders].sort((a, b) => a - b);
  const box = element("div", { class: "context", dir: "auto" });
  for (let index = 0; index + 1 < sorted.length; index++) {
    const [start, end] = [sorted[index], sorted[index + 1]];
    const kinds = new Set(marks.filter((mark) => mark.start <= start && end <= mark.end).map((mark) => mark.kind));
    const text = context.slice(start, end);
    box.append(kinds.size > 0 ? element("mark", { class: [...kinds].join(" ") }, text) : text);
  }
  return box;
}

function choose(question, isOpened) {
  chosen = question;
  if (isOpened) {
    document.body.classList.add("one");
  }
  drawDetail(null);
  detail.scrollTop = 0;
  drawRows();
  writeAddress();
}

function drawDetail(pressed) {
  if (chosen === null) {
    detail.replaceChildren(element("p", { class: "faint" }, "No question fits."));
    return;
  }
  const { title, context } = data.paragraphs[chosen.paragraph];
  const truePlaces = chosen.answers.flatMap(([text, start]) => truePlace(text, start, context));
  const predicted = predictedPlaces(chosen, context, truePlaces);
  const marks = truePlaces.map(([start, end]) => ({ start, end, kind: "true" }));
  if (predicted.place) {
    marks.push({ start: predicted.place[0], end: predicted.place[1], kind: "predicted" });
  }
  if (pressed !== null) {
    for (const [start, end] of places(pressed, context)) {
      marks.push({ start, end, kind: "found" });
    }
  }
  const parts = [makeButtons()];
  parts.push(element("div", { class: "faint" }, title.replaceAll("_", " ")));
  parts.push(element("h2", { dir: "auto" }, chosen.text));
  parts.push(makeScores());
  parts.push(makeAnswers(predicted.count));
  const caption = element("h3", {}, "Context: ", element("mark", { class: "true" }, "true answers"), ", ");
  caption.append(element("mark", { class: "predicted" }, "prediction"));
  const box = markedContext(context, marks);
  parts.push(caption, box);
  if (chosen.n_best) {
    parts.push(element("h3", {}, "Best answers and their probabilities"), makeNBest(pressed));
  }
  parts.push(element("p", { class: "faint" }, "id " + chosen.id));
  detail.replaceChildren(...parts);
  scrollToMark(box);
}

// Of a context that is longer than its box, shows what was looked for, else the prediction, else a true answer.
function scrollToMark(box) {
  const mark = ["found", "predicted", "true"].map((kind) => box.querySelector("." + kind)).find((found) => found !== null);
  if (mark) {
    box.scrollTop = mark.offsetTop + mark.offsetHeight / 2 - box.clientHeight / 2;
  }
}

function makeButtons() {
  const buttons = element("div", { class: "buttons" });
  const add = (text, name, action) => {
    const button = element("button", { type: "button", class: name }, text);
    button.addEventListener("click", action);
    buttons.append(button);
  };
  add("List", "back", () => {
    document.body.classList.remove("one");
    scrollToChosen();
    drawRows();
  });
  add("Previous", "previous", () => step(-1));
  add("Next", "next", () => step(1));
  return buttons;
}

function makeScores() {
  const line = element("div", {}, element("span", { class: chosen.status }, STATUS_NAMES[chosen.status]));
  line.append(` \u2014 exact match ${chosen.is_exact ? 1 : 0}, F1 ${chosen.f1.toFixed(3)}`);
  return line;
}

function makeAnswers(count) {
  const table = element("table", {});
  const addRow = (title, ...content) => {
    table.append(element("tr", {}, element("th", { scope: "row" }, title), element("td", {}, ...content)));
  };
  const words = (text) => element("bdi", {}, text);
  const times = count > 1 ? [element("div", { class: "faint" }, `${count} times in the context; the file does not say which is meant`)] : [];
  const isElsewhere = count === 0 && chosen.prediction !== null && chosen.prediction.trim() !== "";
  const elsewhere = isElsewhere ? [element("div", { class: "faint" }, "not in the context in these words")] : [];
  addRow("prediction", words(answerText(chosen)), ...times, ...elsewhere);
  const counts = new Map();
  for (const [text] of chosen.answers) {
    counts.set(text, (counts.get(text) || 0) + 1);
  }
  const texts = [...counts].map(([text, number]) => element("div", {}, words(text), number > 1 ? ` (${number} times)` : ""));
  addRow("true answers", ...(texts.length > 0 ? texts : ["(no answer)"]));
  return table;
}

function makeNBest(pressed) {
  const table = element("table", { class: "n-best" });
  for (const [text, probability] of chosen.n_best) {
    const button = element("button", { type: "button", "aria-pressed": String(text === pressed) }, text || "(no answer)");
    button.addEventListener("click", () => drawDetail(text === pressed ? null : text));
    const meter = element("meter", { min: 0, max: 1, value: probability });
    table.append(
      element("tr", {},
        element("td", { class: "number" }, percent(probability)),
        element("td", { class: "bar" }, meter),
        element("td", { dir: "auto" }, button))
    );
  }
  return table;
}

function step(distance) {
  const index = shown.indexOf(chosen) + distance;
  if (index >= 0 && index < shown.length) {
    chosen = shown[index];
    scrollToChosen();
    choose(chosen, false);
  }
}

// ---- the head of the page

function drawHead() {
  const files = [data.prediction_file, data.data_file].join(" on ");
  document.title = files;
  document.getElementById("files").textContent = files;
  const totals = document.getElementById("totals");
  const add = (name, value) => totals.append(element("span", {}, name + " ", element("b", {}, value)));
  for (const [name, scores] of data.totals.groups) {
    const of = name === "" ? "" : name + ": ";
    add(of + "exact match", scores.exact_match.toFixed(2));
    add("F1", scores.f1.toFixed(2));
    add("questions", scores.questions.toLocaleString("en"));
  }
  for (const status of Object.keys(STATUS_NAMES)) {
    add(STATUS_NAMES[status], data.totals[status].toLocaleString("en"));
  }
  if (data.totals.unpredicted > 0) {
    add("without a prediction", data.totals.unpredicted.toLocaleString("en"));
  }
  for (const [value, [text, , isOffered]] of Object.entries(FILTERS)) {
    if (isOffered) {
      statusMenu.append(element("option", { value }, text));
    }
  }
  for (const [value, [text]] of Object.entries(ORDERS)) {
    if (data.has_n_best || !text.includes("probable")) {
      orderMenu.append(element("option", { value }, text));
    }
  }
}

// ---- the address: what is searched for, shown and chosen stands behind its #, to be kept and passed on

function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  search.value = address.get("search") || "";
  for (const [menu, name] of [[statusMenu, "show"], [orderMenu, "order"]]) {
    const value = address.get(name);
    menu.value = [...menu.options].some((option) => option.value === value) ? value : menu.options[0].value;
  }
  updateList();
  const wanted = address.get("id");
  chosen = questions.find((question) => question.id === wanted) || shown[0] || null;
  document.body.classList.toggle("one", wanted !== null && chosen !== null && chosen.id === wanted);
  scrollToChosen();
  drawRows();
  drawDetail(null);
}

function writeAddress() {
  const address = new URLSearchParams();
  if (search.value !== "") {
    address.set("search", search.value);
  }
  if (statusMenu.value !== "all") {
    address.set("show", statusMenu.value);
  }
  if (orderMenu.value !== "file") {
    address.set("order", orderMenu.value);
  }
  if (chosen !== null) {
    address.set("id", chosen.id);
  }
  history.replaceState(null, "", "#" + address);
}

function changeFilter() {
  updateList();
  if (!shown.includes(chosen)) {
    chosen = shown[0] || null;
    drawDetail(null);
    drawRows();
  } else {
    scrollToChosen();
    drawRows();
  }
  writeAddress();
}

let waiting = 0;
search.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(changeFilter, 120);
});
statusMenu.addEventListener("change", changeFilter);
orderMenu.addEventListener("change", changeFilter);
document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
list.addEventListener("scroll", drawRows, { passive: true });
window.addEventListener("resize", drawRows);
window.addEventListener("hashchange", readAddress);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) {
    return;
  }
  const actions = { ArrowDown: () => step(1), j: () => step(1), ArrowUp: () => step(-1), k: () => step(-1), "/": () => search.focus() };
  if (event.key in actions) {
    event.preventDefault();
    actions[event.key]();
  }
});

drawHead();
readAddress();
