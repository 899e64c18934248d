#include "dalle/generation/gallery_assets.h"

namespace dalle::generation {

std::string_view gallery_style() {
  return R"css(
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #202124; --soft: #5f6368; --line: #dfe2e7;
  --accent: #1a73e8; --on-accent: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --page: #17181b; --card: #222428; --ink: #e8eaed; --soft: #a0a5ab; --line: #363a40; --accent: #8ab4f8;
    --on-accent: #17181b; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.45 system-ui, sans-serif; }
header, main, footer { max-width: 1280px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 32px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0; overflow-wrap: anywhere; }
p { margin: 0; }
a { color: var(--accent); }
.soft { color: var(--soft); font-size: 0.9rem; }
.bar { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: baseline; justify-content: space-between; }
details { margin: 16px 0 0; }
summary { cursor: pointer; color: var(--soft); width: fit-content; }
table { border-collapse: collapse; margin-top: 8px; font-size: 0.9rem; }
th, td { text-align: left; vertical-align: top; padding: 4px 20px 4px 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--soft); white-space: nowrap; }
nav ol { columns: 18rem; margin: 8px 0 0; padding-left: 1.6rem; font-size: 0.9rem; }
section { margin: 32px 0 48px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: 14px; margin-top: 14px; }
.card { display: block; background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden;
  color: inherit; text-decoration: none; transition: box-shadow 0.12s; }
.card:hover { box-shadow: 0 2px 10px rgb(0 0 0 / 18%); }
.card:focus-visible, button:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.card img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff; }
.card.kept { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
.info { display: flex; justify-content: space-between; gap: 6px; padding: 5px 9px 6px; font-size: 0.85rem;
  font-variant-numeric: tabular-nums; }
.info b { font-weight: 600; }
.kept .info b { color: var(--accent); }
.info span { color: var(--soft); }
.only-kept .card:not(.kept) { display: none; }
button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 6px 14px; cursor: pointer; }
button[aria-pressed="true"] { background: var(--accent); border-color: var(--accent); color: var(--on-accent); }
dialog { border: 0; border-radius: 12px; padding: 16px; background: var(--card); color: var(--ink);
  max-width: 96vw; max-height: 96vh; width: min(720px, 96vw); }
dialog::backdrop { background: rgb(0 0 0 / 65%); }
dialog img { display: block; width: 100%; height: min(68vh, 688px); object-fit: contain; background: #fff;
  border-radius: 6px; }
dialog .bar { margin-top: 12px; flex-wrap: nowrap; align-items: center; }
dialog .text { text-align: center; min-width: 0; overflow-wrap: anywhere; }
.pixelated img { image-rendering: pixelated; }
footer { padding-bottom: 32px; }
)css";
}

std::string_view gallery_viewer() {
  return R"html(
<dialog id="viewer" aria-label="Candidate, large">
<img id="viewer-image" alt="">
<div class="bar">
<button id="previous" type="button" aria-label="Better candidate">&larr;</button>
<div class="text"><p id="viewer-caption"></p><p id="viewer-info" class="soft" aria-live="polite"></p></div>
<button id="next" type="button" aria-label="Next candidate">&rarr;</button>
</div>
</dialog>
)html";
}

std::string_view gallery_script() {
  return R"js(
"use strict";
const viewer = document.getElementById("viewer");
const image = document.getElementById("viewer-image");
let cards = [], current = 0;
function show(index) {
  current = (index + cards.length) % cards.length;
  const card = cards[current];
  const picture = card.querySelector("img");
  image.src = picture.src;
  image.alt = picture.alt;
  document.getElementById("viewer-caption").textContent = card.closest("section").querySelector("h2").textContent;
  document.getElementById("viewer-info").textContent = card.title + " (" + (current + 1) + " of " + cards.length + ")";
}
for (const card of document.querySelectorAll(".card")) {
  card.addEventListener("click", event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    cards = [...card.closest("section").querySelectorAll(".card")].filter(each => each.offsetParent !== null);
    show(cards.indexOf(card));
    viewer.showModal();
  });
}
document.getElementById("previous").addEventListener("click", () => show(current - 1));
document.getElementById("next").addEventListener("click", () => show(current + 1));
viewer.addEventListener("keydown", event => {
  const moves = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: cards.length - 1 };
  if (event.key in moves) { event.preventDefault(); show(moves[event.key]); }
});
viewer.addEventListener("click", event => { if (event.target === viewer || event.target === image) viewer.close(); });
viewer.addEventListener("close", () => cards[current].focus());
for (const toggle of document.querySelectorAll("button.toggle")) {
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const only = toggle.closest("section").classList.toggle("only-kept");
    toggle.setAttribute("aria-pressed", only);
  });
}
)js";
}

}  // namespace dalle::generation
