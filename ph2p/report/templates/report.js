"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const cards = [...document.querySelectorAll(".card")];
  if (!cards.length) return;
  const dialog = at("detail");
  const details = new Map([...document.querySelectorAll("[data-detail]")].map((text) => [text.dataset.detail, text]));
  const byAnchor = new Map(cards.filter((card) => card.dataset.anchor).map((card) => [card.dataset.anchor, card]));
  const names = new Intl.Collator(undefined, { numeric: true });
  const state = { descending: false, shown: cards, open: "" };

  // What a search looks in: the texts of a card in one normal form, and as it is read, not as it is written.
  const plain = (text) => text.normalize("NFKC").toLocaleLowerCase();
  const texts = new Map(
    cards.map((card) => [card, plain([...card.querySelectorAll("[data-find]")].map((part) => part.textContent).join("\n"))]),
  );

  // --- the gallery ---

  function fits(card, words, kind, least) {
    if (kind === "warned" && !("warned" in card.dataset)) return false;
    if (kind === "failed" && !("failed" in card.dataset)) return false;
    if (least !== "" && !(Number(card.dataset.gap ?? NaN) * 100 >= Number(least))) return false;
    return words.every((word) => texts.get(card).includes(word));
  }

  // By a number or by name; cards without the number come last in both directions, equal ones stay as they were.
  function order(key, descending) {
    const sign = descending ? -1 : 1;
    const value = (card) => card.dataset[key];
    return (one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return sign * (key === "name" ? names.compare(a, b) : Number(a) - Number(b));
    };
  }

  function arrange() {
    const key = at("sort").value;
    const words = plain(at("find").value).split(/\s+/u).filter(Boolean);
    const sorted = key === "order" ? (state.descending ? [...cards].reverse() : cards) : [...cards].sort(order(key, state.descending));
    state.shown = sorted.filter((card) => fits(card, words, at("kind").value, at("least").value));
    const seen = new Set(state.shown);
    for (const card of cards) card.hidden = !seen.has(card);
    at("cards").append(...sorted);
    const total = cards.length === 1 ? "1 picture" : `${cards.length} pictures`;
    at("count").textContent = seen.size === cards.length ? total : `${seen.size} of ${total}`;
  }

  function turn(descending) {
    state.descending = descending;
    at("direction").textContent = descending ? "↓" : "↑";
    at("direction").setAttribute("aria-label", `order: ${descending ? "descending" : "ascending"}`);
  }

  // --- the details ---

  const openable = () => state.shown.filter((card) => card.dataset.anchor);

  function show(anchor) {
    const card = byAnchor.get(anchor);
    if (!card || state.open === anchor) return;
    const list = openable();
    const place = list.indexOf(card);
    at("detail-body").innerHTML = details.get(anchor).textContent; // escaped where it was written
    const pictures = card.querySelectorAll(".strip > *");
    for (const image of at("detail-body").querySelectorAll("[data-copy]")) {
      image.src = pictures[Number(image.dataset.copy)].getAttribute("src");
    }
    at("previous").disabled = place <= 0;
    at("next").disabled = place < 0 || place === list.length - 1;
    at("where").textContent = place < 0 ? "not among those shown" : `${place + 1} of ${list.length}`;
    if (!dialog.open) dialog.showModal();
    state.open = anchor;
    at("detail-body").scrollTop = 0;
    at("detail-title").focus({ preventScroll: true });
  }

  function step(by) {
    const list = openable();
    const next = list[list.indexOf(byAnchor.get(state.open)) + by];
    if (!next) return;
    window.location.replace(`#${next.dataset.anchor}`);
    follow(); // now: the browser's own event comes later than the next key of one who holds it down
  }

  function follow() {
    const anchor = decodeURIComponent(window.location.hash.slice(1));
    if (byAnchor.has(anchor)) show(anchor);
    else if (dialog.open) dialog.close();
  }

  dialog.addEventListener("close", () => {
    const card = byAnchor.get(state.open);
    state.open = "";
    at("detail-body").replaceChildren();
    if (byAnchor.has(window.location.hash.slice(1))) window.history.replaceState(null, "", "#");
    if (card && !card.hidden) {
      card.scrollIntoView({ block: "nearest" });
      card.querySelector("a").focus({ preventScroll: true });
    }
  });

  // --- copying ---

  function select(element) {
    window.getSelection().selectAllChildren(element);
    return document.execCommand("copy");
  }

  async function copy(button) {
    const element = at(button.dataset.clip);
    const text = button.dataset.was ?? button.textContent;
    let done = false;
    try {
      await navigator.clipboard.writeText(element.textContent);
      done = true;
    } catch {
      done = select(element); // where the browser keeps pages from disk off the clipboard
    }
    button.dataset.was = text;
    button.textContent = done ? "Copied" : "Selected: press Ctrl+C";
    setTimeout(() => (button.textContent = text), 2000);
  }

  // --- what is done where ---

  at("tools").addEventListener("input", arrange);
  at("tools").addEventListener("submit", (event) => event.preventDefault());
  at("tools").addEventListener("reset", () => {
    turn(false);
    setTimeout(arrange); // after the fields have their first values again
  });
  at("sort").addEventListener("change", () => turn(!["name", "order", "loss", "length", "samples"].includes(at("sort").value)));
  at("sort").addEventListener("change", arrange);
  at("direction").addEventListener("click", () => {
    turn(!state.descending);
    arrange();
  });
  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  at("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside it
    else if (event.target.dataset.clip) copy(event.target);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    if (dialog.open && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
      if (event.target.closest(".chart")) return; // which is scrolled
      event.preventDefault();
      step(event.key === "ArrowLeft" ? -1 : 1);
    } else if (!dialog.open && event.key === "/" && !event.target.closest("input, select")) {
      event.preventDefault();
      at("find").focus();
    }
  });
  window.addEventListener("hashchange", follow);

  at("tools").hidden = false;
  for (const card of byAnchor.values()) card.querySelector("a").hidden = false;
  arrange();
  follow();
})();
