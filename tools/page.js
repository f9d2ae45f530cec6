// The page: a list of items to search, filter, order and look at one by one. The script of the kind of items follows this
// one, defines a `view` and calls startPage(view):
//   items: objects, each with an `id`, a string of its own
//   noun: what an item is called
//   title: of the page; totals: [name, text] pairs for its head
//   filters: value -> [text, item -> whether it is listed]; the first is that of a new page
//   orders: value -> [text, item -> number to sort by, or null for the order of the items]
//   haystack(item): lower-case texts in which to search
//   row(item): {text, kind, status, note}: both lines of its row; `kind` is a class of the style sheet
//   draw(item): shows the item by showDetail

const ROW_HEIGHT = 58; // as in the style sheet
const ROWS_BEYOND = 10; // rows that are made above and below those that are seen

const list = document.getElementById("list");
const rows = document.getElementById("rows");
const detail = document.getElementById("detail");
const search = document.getElementById("search");
const statusMenu = document.getElementById("status");
const orderMenu = document.getElementById("order");

let page = null; // the view
let shown = []; // the items in the list, in its order
let chosen = null; // the item in the detail

// ---- the list

function updateList() {
  const words = search.value.trim().toLowerCase();
  const accepts = page.filters[statusMenu.value][1];
  shown = page.items.filter(
    (item) => accepts(item) && (words === "" || page.haystack(item).some((text) => text.includes(words)))
  );
  const key = page.orders[orderMenu.value][1];
  if (key !== null) {
    shown = shown.map((item) => [key(item), item]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1]);
  }
  document.getElementById("shown").textContent =
    shown.length.toLocaleString("en") + " of " + page.items.length.toLocaleString("en");
  rows.style.height = shown.length * ROW_HEIGHT + "px";
  list.scrollTop = 0;
  drawRows();
}

// Makes elements for the rows that are seen, and a few more; thousands would make the page slow.
function drawRows() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - ROWS_BEYOND);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + ROWS_BEYOND);
  rows.replaceChildren(...shown.slice(first, last).map((item, index) => makeRow(item, first + index)));
}

function makeRow(item, index) {
  const { text, kind, status, note } = page.row(item);
  const below = element("span", { class: "answer" });
  below.append(element("b", { class: kind }, status), "  ", element("bdi", {}, note));
  const above = element("span", { dir: "auto" }, text);
  const row = element("button", { class: "row", type: "button", tabindex: "-1" }, above, below);
  row.style.top = index * ROW_HEIGHT + "px";
  row.setAttribute("aria-current", String(item === chosen));
  row.addEventListener("click", () => choose(item, true));
  return row;
}

function scrollToChosen() {
  const top = shown.indexOf(chosen) * ROW_HEIGHT;
  if (top < list.scrollTop || top + ROW_HEIGHT > list.scrollTop + list.clientHeight) {
    list.scrollTop = Math.max(0, top - list.clientHeight / 2);
  }
}

// ---- one item

function choose(item, isOpened) {
  chosen = item;
  if (isOpened) {
    document.body.classList.add("one");
  }
  drawDetail();
  detail.scrollTop = 0;
  drawRows();
  writeAddress();
}

function drawDetail() {
  if (chosen === null) {
    detail.replaceChildren(element("p", { class: "faint" }, `No ${page.noun} fits.`));
  } else {
    page.draw(chosen);
  }
}

function showDetail(...parts) {
  detail.replaceChildren(makeButtons(), ...parts);
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
  document.title = page.title;
  document.getElementById("files").textContent = page.title;
  const totals = document.getElementById("totals");
  for (const [name, value] of page.totals) {
    totals.append(element("span", {}, name + " ", element("b", {}, value)));
  }
  for (const [menu, choices] of [[statusMenu, page.filters], [orderMenu, page.orders]]) {
    for (const [value, [text]] of Object.entries(choices)) {
      menu.append(element("option", { value }, text));
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
  chosen = page.items.find((item) => item.id === wanted) || shown[0] || null;
  document.body.classList.toggle("one", wanted !== null && chosen !== null && chosen.id === wanted);
  scrollToChosen();
  drawRows();
  drawDetail();
}

function writeAddress() {
  const address = new URLSearchParams();
  if (search.value !== "") {
    address.set("search", search.value);
  }
  for (const [menu, name] of [[statusMenu, "show"], [orderMenu, "order"]]) {
    if (menu.selectedIndex > 0) {
      address.set(name, menu.value);
    }
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
    drawDetail();
    drawRows();
  } else {
    scrollToChosen();
    drawRows();
  }
  writeAddress();
}

// ---- what the user does

function startPage(view) {
  page = view;
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
    const actions = {
      ArrowDown: () => step(1),
      j: () => step(1),
      ArrowUp: () => step(-1),
      k: () => step(-1),
      "/": () => search.focus(),
    };
    if (event.key in actions) {
      event.preventDefault();
      actions[event.key]();
    }
  });
  drawHead();
  readAddress();
}
