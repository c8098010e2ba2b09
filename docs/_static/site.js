"use strict";

// The catalogue: shows the cards that the form asks for, in its order. The address keeps what was asked, to be sent on.
const form = document.getElementById("zoo-filter");
if (form) {
  const list = document.getElementById("zoo-cards");
  const cards = [...list.children];
  const count = document.getElementById("zoo-count");

  const passes = (card, asked) =>
    ["modality", "task"].every((key) => !asked[key] || card.dataset[key].split(" ").includes(asked[key])) &&
    ["anatomy", "dimension", "available", "commercial"].every((key) => !asked[key] || card.dataset[key] === asked[key]) &&
    (asked.text || "").toLowerCase().split(/\s+/).every((word) => card.textContent.toLowerCase().includes(word));

  // What is not known stands last.
  const number = (card, key) => (card.dataset[key] === "" ? Infinity : Number(card.dataset[key]));
  const inOrder = (key) =>
    key ? cards.slice().sort((a, b) => number(a, key) - number(b, key) || cards.indexOf(a) - cards.indexOf(b)) : cards;

  const show = () => {
    const asked = Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ""));
    cards.forEach((card) => (card.hidden = !passes(card, asked)));
    list.append(...inOrder(asked.order));
    count.textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length} weights`;
    return new URLSearchParams(asked).toString();
  };
  const keep = () => history.replaceState(null, "", `#${show()}`);
  const recall = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const field of form.elements) {
      if (field.type === "checkbox") field.checked = asked.get(field.name) === field.value;
      else if (field.name) field.value = asked.get(field.name) || "";
    }
    show();
  };

  form.addEventListener("input", keep);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(keep)); // once the fields are empty
  window.addEventListener("hashchange", recall);
  form.hidden = false;
  recall();
}

// A button that copies each block of code, without the signs that a terminal shows before a command.
for (const block of document.querySelectorAll("div.highlight pre")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "zoo-copy";
  button.textContent = "copy";
  button.setAttribute("aria-label", "copy this block");
  button.addEventListener("click", async () => {
    const text = block.textContent.replace(/^\$ /gm, "");
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(block); // where the browser gives pages no clipboard: Ctrl-C does the rest
      button.textContent = "selected";
    }
    setTimeout(() => (button.textContent = "copy"), 2000);
  });
  block.parentElement.append(button);
}
