"use strict";

// What all pages use: their data, and elements.

const data = JSON.parse(document.getElementById("data").textContent);

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

function meter(value) {
  return element("td", { class: "bar" }, element("meter", { min: 0, max: 1, value }));
}
