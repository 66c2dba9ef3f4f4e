"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const items = new Map(data.items.map((item) => [item.id, item]));
  const questions = Object.keys(data.questions);
  const at = (id) => document.getElementById(id);
  const field = (question) => document.querySelector(`fieldset[data-question="${question}"]`);
  const mine = (rater) => `study/${data.study}/${rater}`;
  const state = { rater: "", order: [], place: 0, ratings: {} };
  const memory = {};

  // What the browser keeps; where it keeps nothing, the page's own memory and a warning.
  function read(name) {
    try {
      return window.localStorage.getItem(name) ?? memory[name] ?? null;
    } catch {
      return memory[name] ?? null;
    }
  }

  function write(name, text) {
    memory[name] = text;
    try {
      window.localStorage.setItem(name, text);
    } catch {
      at("not-kept").hidden = false;
    }
  }

  // The same numbers in [0, 1) for the same text: xmur3 gives the state of mulberry32.
  function numbers(text) {
    let hash = 1779033703 ^ text.length;
    for (let k = 0; k < text.length; k++) {
      hash = Math.imul(hash ^ text.charCodeAt(k), 3432918353);
      hash = (hash << 13) | (hash >>> 19);
    }
    return () => {
      hash = (hash + 0x6d2b79f5) | 0;
      let t = Math.imul(hash ^ (hash >>> 15), 1 | hash);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  function shuffled(list, draw) {
    const mixed = [...list];
    for (let k = mixed.length - 1; k > 0; k--) {
      const other = Math.floor(draw() * (k + 1));
      [mixed[k], mixed[other]] = [mixed[other], mixed[k]];
    }
    return mixed;
  }

  // Rounds in which each picture comes once, with one of its prompts, so that no picture follows itself if there are
  // several; the checks stand in between, about evenly.
  function orderFor(rater) {
    const draw = numbers(`${data.study}/${rater}`);
    const prompts = new Map();
    for (const item of data.items.filter((one) => !one.check)) {
      prompts.set(item.picture, [...(prompts.get(item.picture) ?? []), item]);
    }
    const turns = [...prompts.values()].map((list) => shuffled(list, draw));
    const order = [];
    for (let round = 0; turns.some((list) => list.length > round); round++) {
      const chosen = shuffled(turns.filter((list) => list.length > round), draw).map((list) => list[round]);
      if (chosen.length > 1 && chosen[0].picture === order.at(-1)?.picture) chosen.push(chosen.shift());
      order.push(...chosen);
    }
    const checks = shuffled(data.items.filter((one) => one.check), draw);
    const gap = order.length / (checks.length + 1);
    checks.reverse().forEach((check, k) => {
      const place = gap * (checks.length - k) + (draw() - 0.5) * gap * 0.8;
      order.splice(Math.max(1, Math.round(place)), 0, check);
    });
    return order.map((item) => item.id);
  }

  // --- ratings ---

  function known(text) {
    const kept = {};
    let found = null;
    try {
      found = JSON.parse(text);
    } catch {
      // what another program left there is passed over
    }
    for (const [id, answers] of Object.entries(found ?? {})) {
      if (!items.has(id)) continue;
      for (const question of questions) {
        const value = answers?.[question];
        if (Number.isInteger(value) && value >= 1 && value <= data.questions[question]) {
          kept[id] = { ...kept[id], [question]: value };
        }
      }
    }
    return kept;
  }

  const answersOf = (id) => state.ratings[id] ?? {};
  const missing = (id) => questions.find((question) => !(question in answersOf(id)));

  function rate(question, value) {
    const id = state.order[state.place];
    state.ratings[id] = { ...answersOf(id), [question]: value };
    write(mine(state.rater), JSON.stringify(state.ratings));
    at("wrong").textContent = "";
  }

  // --- what is shown ---

  function show(section) {
    for (const id of ["start", "trial", "done"]) at(id).hidden = id !== section;
    at("so-far").hidden = section !== "trial";
    window.scrollTo(0, 0);
  }

  function focusOn(question) {
    const inputs = [...field(question).querySelectorAll("input")];
    (inputs.find((input) => input.checked) ?? inputs[0]).focus({ preventScroll: true });
  }

  function goTo(element) {
    element.scrollIntoView({ block: "nearest" });
    if (element.dataset.question) focusOn(element.dataset.question);
    else element.focus();
  }

  function showTrial() {
    const id = state.order[state.place];
    const item = items.get(id);
    at("where").textContent = `Prompt ${state.place + 1} of ${state.order.length}`;
    at("progress").max = state.order.length;
    at("progress").value = state.order.filter((one) => !missing(one)).length;
    at("picture").src = data.pictures[item.picture];
    at("prompt").textContent = item.prompt || "(no words)";
    for (const question of questions) {
      for (const input of field(question).querySelectorAll("input")) {
        input.checked = Number(input.value) === answersOf(id)[question];
      }
    }
    at("back").disabled = state.place === 0;
    at("next").textContent = state.place + 1 < state.order.length ? "Next" : "Finish";
    at("wrong").textContent = "";
    at("who").textContent = `Rated by ${state.rater}, kept in this browser.`;
    show("trial");
    focusOn(missing(id) ?? questions[0]);
  }

  function next() {
    const open = missing(state.order[state.place]);
    if (open) {
      at("wrong").textContent = "Please answer each question.";
      goTo(field(open));
    } else if (state.place + 1 < state.order.length) {
      state.place += 1;
      showTrial();
    } else {
      const first = state.order.findIndex(missing);
      if (first < 0) return finish();
      state.place = first;
      showTrial();
    }
  }

  function back() {
    if (state.place === 0) return;
    state.place -= 1;
    showTrial();
  }

  function finish() {
    show("done");
    document.querySelector("#done button").focus();
  }

  function begin(rater) {
    Object.assign(state, { rater, order: orderFor(rater), ratings: known(read(mine(rater))) });
    write(`study/${data.study}`, rater);
    const first = state.order.findIndex(missing);
    state.place = Math.max(0, first);
    if (first < 0) finish();
    else showTrial();
  }

  function start() {
    at("rater").value = read(`study/${data.study}`) ?? "";
    show("start");
    at("rater").focus();
  }

  // --- files ---

  const rows = () =>
    state.order.flatMap((id) => questions.filter((one) => one in answersOf(id)).map((one) => [id, one, answersOf(id)[one]]));

  function csv() {
    const quoted = `"${state.rater.replaceAll('"', '""')}"`;
    const lines = rows().map(([id, question, value]) => [data.study, quoted, id, question, value].join(","));
    return ["study,rater,item,question,rating", ...lines, ""].join("\r\n");
  }

  const json = () => JSON.stringify({ study: data.study, rater: state.rater, ratings: state.ratings }, null, 1) + "\n";

  function save(kind) {
    const [text, type] = kind === "csv" ? [csv(), "text/csv"] : [json(), "application/json"];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = `ratings-${data.study}-${state.rater.replace(/[^\p{L}\p{N}_-]+/gu, "-")}.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // --- what is done where ---

  at("begin").addEventListener("submit", (event) => {
    event.preventDefault();
    const rater = at("rater").value.normalize("NFC").trim().replace(/\s+/g, " ");
    const good = /^[\p{L}\p{N}][\p{L}\p{M}\p{N} ._-]{0,39}$/u.test(rater);
    at("rater-wrong").textContent = good ? "" : "Please give a name: letters, digits, spaces, dots, hyphens.";
    if (good) begin(rater);
    else at("rater").focus();
  });
  at("rate").addEventListener("submit", (event) => {
    event.preventDefault();
    next();
  });
  at("rate").addEventListener("change", (event) => rate(event.target.name, Number(event.target.value)));
  at("back").addEventListener("click", back);
  at("review").addEventListener("click", () => {
    state.place = 0;
    showTrial();
  });
  at("other").addEventListener("click", () => {
    write(`study/${data.study}`, "");
    start();
  });
  for (const button of document.querySelectorAll("[data-save]")) {
    button.addEventListener("click", () => save(button.dataset.save));
  }
  document.addEventListener("keydown", (event) => {
    if (at("trial").hidden || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const id = state.order[state.place];
    if (/^[1-9]$/.test(event.key)) {
      const current = event.target.closest("fieldset")?.dataset.question ?? missing(id);
      const input = current && field(current).querySelector(`input[value="${event.key}"]`);
      if (!input) return;
      event.preventDefault();
      input.checked = true;
      rate(current, Number(event.key));
      const following = questions[questions.indexOf(current) + 1];
      goTo(following ? field(following) : at("next"));
    } else if (event.key === "Backspace") {
      event.preventDefault();
      back();
    } else if (event.key === "Enter" && event.target.tagName !== "BUTTON") {
      event.preventDefault();
      next();
    }
  });
  start();
})();
