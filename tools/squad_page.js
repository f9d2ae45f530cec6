// Questions of SQuAD with their predictions; see page.js.

const STATUS_NAMES = { right: "right", partly: "partly right", wrong: "wrong" };

function topProbability(question) {
  return question.n_best ? question.n_best[0][1] : 0;
}

function makeFilters() {
  const filters = {
    all: ["all questions", () => true],
    right: ["right (exact match)", (question) => question.status === "right"],
    missed: ["not right", (question) => question.status !== "right"],
    partly: ["partly right (F1 above 0)", (question) => question.status === "partly"],
    wrong: ["wrong (F1 of 0)", (question) => question.status === "wrong"],
  };
  if (data.totals.unpredicted > 0) {
    filters.unpredicted = ["without a prediction", (question) => question.prediction === null];
  }
  if (data.is_v2) {
    filters.answerable = ["with an answer", (question) => question.answers.length > 0];
    filters.unanswerable = ["without an answer", (question) => question.answers.length === 0];
  }
  return filters;
}

function makeOrders() {
  const orders = { file: ["as in the file", null], f1: ["lowest F1 first", (question) => question.f1] };
  if (data.has_n_best) {
    orders.confident = ["most probable first", (question) => -topProbability(question)];
    orders.doubtful = ["least probable first", topProbability];
  }
  return orders;
}

function makeTotals() {
  const totals = [];
  for (const [name, scores] of data.totals.groups) {
    totals.push([(name === "" ? "" : name + ": ") + "exact match", scores.exact_match.toFixed(2)]);
    totals.push(["F1", scores.f1.toFixed(2)]);
    totals.push(["questions", scores.questions.toLocaleString("en")]);
  }
  for (const [status, name] of Object.entries(STATUS_NAMES)) {
    totals.push([name, data.totals[status].toLocaleString("en")]);
  }
  if (data.totals.unpredicted > 0) {
    totals.push(["without a prediction", data.totals.unpredicted.toLocaleString("en")]);
  }
  return totals;
}

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

function rowOf(question) {
  const { text, status } = question;
  return { text, kind: status, status: STATUS_NAMES[status], note: answerText(question) };
}

function answerText(question) {
  if (question.prediction === null) {
    return "(no prediction)";
  }
  return question.prediction === "" ? "(no answer)" : question.prediction;
}

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

// `pressed` is the answer of the n best that is marked in the context, or null.
function drawQuestion(question, pressed) {
  const { title, context } = data.paragraphs[question.paragraph];
  const truePlaces = question.answers.flatMap(([text, start]) => truePlace(text, start, context));
  const predicted = predictedPlaces(question, context, truePlaces);
  const marks = truePlaces.map(([start, end]) => ({ start, end, kind: "true" }));
  if (predicted.place) {
    marks.push({ start: predicted.place[0], end: predicted.place[1], kind: "predicted" });
  }
  if (pressed !== null) {
    for (const [start, end] of places(pressed, context)) {
      marks.push({ start, end, kind: "found" });
    }
  }
  const parts = [element("div", { class: "faint" }, title.replaceAll("_", " "))];
  parts.push(element("h2", { dir: "auto" }, question.text));
  parts.push(makeScores(question));
  parts.push(makeAnswers(question, predicted.count));
  const caption = element("h3", {}, "Context: ", element("mark", { class: "true" }, "true answers"), ", ");
  caption.append(element("mark", { class: "predicted" }, "prediction"));
  const box = markedContext(context, marks);
  parts.push(caption, box);
  if (question.n_best) {
    parts.push(element("h3", {}, "Best answers and their probabilities"), makeNBest(question, pressed));
  }
  parts.push(element("p", { class: "faint" }, "id " + question.id));
  showDetail(...parts);
  scrollToMark(box);
}

// Of a context that is longer than its box, shows what was looked for, else the prediction, else a true answer.
function scrollToMark(box) {
  const mark = ["found", "predicted", "true"].map((kind) => box.querySelector("." + kind)).find((found) => found !== null);
  if (mark) {
    box.scrollTop = mark.offsetTop + mark.offsetHeight / 2 - box.clientHeight / 2;
  }
}

function makeScores(question) {
  const line = element("div", {}, element("span", { class: question.status }, STATUS_NAMES[question.status]));
  line.append(` \u2014 exact match ${question.is_exact ? 1 : 0}, F1 ${question.f1.toFixed(3)}`);
  return line;
}

// `count` is how often the prediction stands in the context.
function makeAnswers(question, count) {
  const table = element("table", {});
  const addRow = (title, ...content) => {
    table.append(element("tr", {}, element("th", { scope: "row" }, title), element("td", {}, ...content)));
  };
  const words = (text) => element("bdi", {}, text);
  const times = count > 1 ? [element("div", { class: "faint" }, `${count} times in the context; the file does not say which is meant`)] : [];
  const isElsewhere = count === 0 && question.prediction !== null && question.prediction.trim() !== "";
  const elsewhere = isElsewhere ? [element("div", { class: "faint" }, "not in the context in these words")] : [];
  addRow("prediction", words(answerText(question)), ...times, ...elsewhere);
  const counts = new Map();
  for (const [text] of question.answers) {
    counts.set(text, (counts.get(text) || 0) + 1);
  }
  const texts = [...counts].map(([text, number]) => element("div", {}, words(text), number > 1 ? ` (${number} times)` : ""));
  addRow("true answers", ...(texts.length > 0 ? texts : ["(no answer)"]));
  return table;
}

function makeNBest(question, pressed) {
  const table = element("table", { class: "n-best" });
  for (const [text, probability] of question.n_best) {
    const button = element("button", { type: "button", "aria-pressed": String(text === pressed) }, text || "(no answer)");
    button.addEventListener("click", () => drawQuestion(question, text === pressed ? null : text));
    table.append(
      element("tr", {},
        element("td", { class: "number" }, percent(probability)),
        meter(probability),
        element("td", { dir: "auto" }, button))
    );
  }
  return table;
}

startPage({
  items: data.questions,
  noun: "question",
  title: [data.prediction_file, data.data_file].join(" on "),
  totals: makeTotals(),
  filters: makeFilters(),
  orders: makeOrders(),
  haystack,
  row: rowOf,
  draw: (question) => drawQuestion(question, null),
});
