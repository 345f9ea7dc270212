// Shared by the scripts of all pages, and included before them.
"use strict";

const read = id => JSON.parse(document.getElementById(id).textContent);
const tip = document.getElementById("tip");
const number = (x, digits = 4) => x === null || x === undefined ? "–" : typeof x === "number" ? Number(x.toPrecision(digits)).toString().replace("-", "−") : String(x);

// Shows the tip near a point, inside the window.
function tipAt(x, y) {
  tip.hidden = false;
  tip.style.left = tip.style.top = "0";  // as wide as it wants to be, wherever it was before
  tip.style.left = Math.max(8, Math.min(x, document.documentElement.clientWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(8, Math.min(y, window.innerHeight - tip.offsetHeight - 8)) + "px";
}

function element(tag, text = "", className = "", ...children) {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = text;
  if (className) made.className = className;
  made.append(...children);
  return made;
}
