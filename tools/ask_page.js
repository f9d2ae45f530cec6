// The page of tools/ask.py --serve: asks the server, and marks the answer in the text. A question and its text stand
// behind the # of the address.

const form = document.getElementById("ask");
const questionBox = document.getElementById("question");
const contextBox = document.getElementById("context");
const result = document.getElementById("result");

let newest = 0; // the number of the question that was asked last

// The text with the answer marked. The server counts characters, JavaScript those beyond U+FFFF twice.
function markedContext(context, { begin, end }) {
  const box = element("div", { class: "context", dir: "auto" });
  if (begin === null) {
    box.append(context);
  } else {
    const characters = Array.from(context);
    const part = (from, to) => characters.slice(from, to).join("");
    box.append(part(0, begin), element("mark", { class: "found" }, part(begin, end)), part(end));
  }
  return box;
}

function show(answer, context, shown) {
  const box = markedContext(context, shown);
  const table = element("table", { class: "n-best" });
  for (const one of answer.n_best || [{ ...answer, text: answer.answer }]) {
    const isShown = one.begin === shown.begin && one.end === shown.end;
    const button = element("button", { type: "button", "aria-pressed": String(isShown) }, one.text || "(no answer)");
    button.addEventListener("click", () => show(answer, context, one));
    table.append(
      element("tr", {},
        element("td", { class: "number" }, percent(one.probability)),
        meter(one.probability),
        element("td", { dir: "auto" }, button))
    );
  }
  result.replaceChildren(
    element("h2", { id: "answer", dir: "auto" }, answer.answer || "(no answer)"), table, element("h3", {}, "Text"), box
  );
  const mark = box.querySelector("mark");
  if (mark) {
    box.scrollTop = mark.offsetTop + mark.offsetHeight / 2 - box.clientHeight / 2;
  }
}

async function ask() {
  const number = ++newest;
  const question = questionBox.value;
  const context = data.context ?? contextBox.value;
  const asked = data.context === null ? { question, context } : { question };
  history.replaceState(null, "", "#" + new URLSearchParams(asked));
  result.replaceChildren(element("p", { class: "faint" }, "Waiting for the answer"));
  let shown;
  try {
    const headers = { "Content-Type": "application/json" };
    const response = await fetch("answer", { method: "POST", headers, body: JSON.stringify(asked) });
    const answer = await response.json();
    shown = response.ok ? () => show(answer, context, answer) : () => showError(answer.error);
  } catch (error) {
    shown = () => showError("The server does not answer: " + error.message);
  }
  // The answer to an earlier question may come later.
  if (number === newest) {
    shown();
  }
}

function showError(text) {
  result.replaceChildren(element("p", { class: "wrong", role: "alert" }, text));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
if (data.context !== null) {
  document.getElementById("context-label").remove();
  result.append(markedContext(data.context, { begin: null }));
}
const address = new URLSearchParams(location.hash.slice(1));
questionBox.value = address.get("question") || "";
contextBox.value = address.get("context") || "";
if (form.checkValidity()) {
  ask();
}
