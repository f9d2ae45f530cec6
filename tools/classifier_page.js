// Sentences with their labels and predictions; see page.js.
// An item: {id, texts, label, prediction, probabilities}. `label` is null in a file without labels; label and
// prediction are numbers of labels, or scores where there are no names of labels.

const names = data.labels; // null for scores

function statusOf(item) {
  if (item.label === null) {
    return { kind: "", status: "" };
  }
  if (names === null) {
    return { kind: "", status: `score ${short(item.label)}` };
  }
  return item.label === item.prediction ? { kind: "right", status: "right" } : { kind: "wrong", status: "wrong" };
}

function short(score) {
  return String(Number(score.toPrecision(4)));
}

function nameOf(value) {
  return names === null ? short(value) : names[value];
}

function makeFilters() {
  const filters = { all: ["all sentences", () => true] };
  if (names === null) {
    return filters;
  }
  if (data.has_labels) {
    filters.right = ["right", (item) => item.label === item.prediction];
    filters.wrong = ["wrong", (item) => item.label !== item.prediction];
  }
  names.forEach((name, index) => {
    filters["predicted-" + index] = ["predicted: " + name, (item) => item.prediction === index];
  });
  if (data.has_labels) {
    names.forEach((name, index) => {
      filters["label-" + index] = ["label: " + name, (item) => item.label === index];
    });
    data.confusion.forEach((counts, label) => counts.forEach((count, prediction) => {
      if (count > 0) {
        filters[cell(label, prediction)] = [
          `label ${names[label]}, predicted ${names[prediction]}`,
          (item) => item.label === label && item.prediction === prediction,
        ];
      }
    }));
  }
  return filters;
}

function cell(label, prediction) {
  return `label-${label}-predicted-${prediction}`;
}

function makeOrders() {
  const orders = { file: ["as in the file", null] };
  if (names === null) {
    if (data.has_labels) {
      orders.error = ["largest error first", (item) => -Math.abs(item.prediction - item.label)];
    }
    orders.highest = ["highest prediction first", (item) => -item.prediction];
    orders.lowest = ["lowest prediction first", (item) => item.prediction];
    return orders;
  }
  orders.doubtful = ["least probable prediction first", (item) => item.probabilities[item.prediction]];
  orders.confident = ["most probable prediction first", (item) => -item.probabilities[item.prediction]];
  if (data.has_labels) {
    orders.missed = ["least probable label first", (item) => item.probabilities[item.label]];
  }
  return orders;
}

function haystack(item) {
  if (item.lower === undefined) {
    item.lower = item.texts.join("\n").toLowerCase();
  }
  return [item.lower];
}

function rowOf(item) {
  const note = names === null ? short(item.prediction) : `${nameOf(item.prediction)}  ${percent(item.probabilities[item.prediction])}`;
  return { text: item.texts.join(" \u2016 "), note, ...statusOf(item) };
}

function drawSentence(item) {
  const { kind, status } = statusOf(item);
  const parts = [element("div", { class: "faint" }, "line " + item.id)];
  parts.push(...item.texts.map((text) => element("h2", { dir: "auto" }, text)));
  if (status !== "") {
    parts.push(element("div", {}, element("span", { class: kind }, status)));
  }
  const table = element("table", {});
  const addRow = (title, text) => {
    const value = element("td", {}, element("bdi", {}, text));
    table.append(element("tr", {}, element("th", { scope: "row" }, title), value));
  };
  addRow("prediction", nameOf(item.prediction));
  if (item.label !== null) {
    addRow("label", nameOf(item.label));
  }
  parts.push(table);
  if (names !== null) {
    parts.push(element("h3", {}, "Probabilities"), makeProbabilities(item));
    if (data.has_labels) {
      parts.push(element("h3", {}, "Confusion matrix of all sentences: a row for each label, a column for each prediction"));
      parts.push(confusionAround(item));
    }
  }
  showDetail(...parts);
}

function makeProbabilities(item) {
  const table = element("table", { class: "probabilities" });
  const order = [...names.keys()].sort((a, b) => item.probabilities[b] - item.probabilities[a]);
  for (const index of order) {
    const name = element("td", { dir: "auto" }, names[index]);
    if (index === item.label) {
      name.className = "right";
    }
    const probability = item.probabilities[index];
    table.append(element("tr", {}, element("td", { class: "number" }, percent(probability)), meter(probability), name));
  }
  return table;
}

// The confusion matrix, {table, buttons: name of a cell -> its button}, made once. A button lists the sentences it counts.
let confusion = null;

function makeConfusion() {
  const buttons = new Map();
  const head = element("tr", {}, element("td", {}), ...names.map((name) => element("th", { scope: "col" }, name)));
  const table = element("table", { class: "confusion" }, head);
  data.confusion.forEach((counts, label) => {
    const line = element("tr", {}, element("th", { scope: "row" }, names[label]));
    counts.forEach((count, prediction) => {
      const place = element("td", { class: "number" }, count === 0 ? "0" : "");
      if (count > 0) {
        const button = element("button", { type: "button" }, count.toLocaleString("en"));
        button.addEventListener("click", () => {
          statusMenu.value = cell(label, prediction);
          changeFilter();
        });
        buttons.set(cell(label, prediction), button);
        place.append(button);
      }
      line.append(place);
    });
    table.append(line);
  });
  return { table, buttons };
}

function confusionAround(item) {
  confusion = confusion || makeConfusion();
  for (const [name, button] of confusion.buttons) {
    button.setAttribute("aria-pressed", String(name === cell(item.label, item.prediction)));
  }
  return element("div", { class: "wide" }, confusion.table);
}

startPage({
  items: data.items,
  noun: "sentence",
  title: [data.prediction_file, data.data_file].join(" on "),
  totals: [
    ...data.metrics.map(([name, value]) => [name.replaceAll("_", " "), value === null ? "undefined" : value.toFixed(4)]),
    ["sentences", data.items.length.toLocaleString("en")],
  ],
  filters: makeFilters(),
  orders: makeOrders(),
  haystack,
  row: rowOf,
  draw: drawSentence,
});
