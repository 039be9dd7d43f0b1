"use strict";

// What the script is given is text, and becomes text: nothing here makes markup of a string.
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const element = (id) => document.getElementById(id);
  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const colors = bytes(data.colors);
  const UNSEEN = 255;
  const OPACITY = 0.6;
  const DIMMED = 0.7;
  const ENLARGED = 8; // smoothly, so that print is smooth, too

  function make(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  const chosen = { picture: -1, word: -1, row: 0, shown: true };
  let rows = [];

  function choose(picture, word) {
    const before = chosen.picture;
    Object.assign(chosen, { picture, word, row: 0 });
    if (picture !== before) place(picture);
    for (const button of document.querySelectorAll(".word")) {
      const isChosen = +button.dataset.picture === picture && +button.dataset.word === word;
      button.setAttribute("aria-pressed", String(isChosen));
    }
    fill(data.pictures[picture].words[word]);
  }

  function place(picture) {
    const card = element(`picture-${picture}`);
    for (const other of document.querySelectorAll(".card.chosen")) other.classList.remove("chosen");
    card.classList.add("chosen");
    const inspector = element("inspector");
    card.after(inspector);
    inspector.hidden = false;

    const image = card.querySelector("img");
    element("frame").style.setProperty("--aspect", card.style.getPropertyValue("--aspect"));
    element("picture").hidden = !image;
    if (image) element("picture").src = image.src;
    else element("picture").removeAttribute("src");
    element("picture").alt = data.pictures[picture].name;
    element("missing").hidden = Boolean(image);
    element("missing").textContent = image ? "" : card.querySelector(".missing").textContent;
    element("caption").replaceChildren(...card.querySelector(".caption").cloneNode(true).childNodes);
  }

  function fill(word) {
    element("word").textContent = word.lemma === word.word ? word.word : `${word.word} (${word.lemma})`;
    element("probability").textContent = word.probability;
    element("logit").textContent = word.logit;
    element("total").textContent = word.total;
    element("note").textContent = `Scores ${word.note}.`;
    element("note").hidden = !word.note;
    rows = [
      ...word.neurons.map((neuron) => {
        const map = word.maps.find((candidate) => candidate.rank === neuron.rank);
        return { name: neuron.name, map, line: neuronLine(neuron) };
      }),
      ...word.maps.filter((map) => map.first !== null).map((map) => {
        const name = `mean of the first ${map.first}`;
        return { name, map, line: meanLine(name) };
      }),
    ];
    rows.forEach(({ line }, index) => listen(line, index));
    element("neurons").replaceChildren(...rows.map(({ line }) => line));
    settle();
  }

  function cell(tag, className, ...children) {
    const made = make(tag, { className }, ...children);
    made.setAttribute("role", tag === "th" ? "rowheader" : "cell");
    return made;
  }

  function line(className, ...cells) {
    const made = make("tr", { className }, ...cells);
    made.setAttribute("role", "row");
    return made;
  }

  function neuronLine(neuron) {
    const score = make("span", { className: "score", textContent: neuron.score });
    score.style.setProperty("--bar", neuron.bar);
    const tokens = neuron.promotes.map((token) => make("bdi", { textContent: token }));
    return line(
      "",
      cell("th", "", make("button", { type: "button", textContent: neuron.name })),
      cell("td", "number", score),
      cell("td", "number", neuron.share),
      cell("td", "number", neuron.activation),
      cell("td", "tokens promoted", ...tokens.flatMap((token) => [token, " "])),
    );
  }

  function meanLine(name) {
    const made = line("mean", cell("th", "", make("button", { type: "button", textContent: name })));
    made.firstChild.colSpan = 5;
    return made;
  }

  function listen(line, index) {
    const button = line.querySelector("button");
    const pin = () => { chosen.row = index; settle(); };
    line.addEventListener("click", () => button.focus());
    line.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") show(index); });
    line.addEventListener("pointerleave", settle);
    button.addEventListener("focus", pin);
    button.addEventListener("click", pin);
    button.addEventListener("keydown", (event) => {
      const next = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: rows.length - 1 }[event.key];
      if (!rows[next]) return;
      event.preventDefault();
      rows[next].line.querySelector("button").focus();
    });
  }

  function settle() {
    rows.forEach(({ line }, index) => {
      line.classList.toggle("chosen", index === chosen.row);
      line.querySelector("button").setAttribute("aria-pressed", String(index === chosen.row));
    });
    show(chosen.row);
  }

  function show(index) {
    const { name, map } = rows[index] ?? { name: "no neuron", map: undefined };
    const visible = Boolean(map) && chosen.shown;
    element("map").hidden = element("legend").hidden = !visible;
    element("picture").classList.toggle("gray", visible);
    element("map-name").textContent = map ? name : `${name}: no map in this run`;
    if (!visible) return;
    paint(element("map"), map);
    element("map").setAttribute("aria-label", `Where ${name} looks, over the picture`);
    element("low").textContent = map.low;
    element("high").textContent = map.high;
  }

  function paint(canvas, map) {
    const codes = bytes(map.codes);
    element("unseen").hidden = !codes.includes(UNSEEN);
    const pixels = new ImageData(map.columns, map.rows);
    codes.forEach((code, index) => {
      const at = 4 * index;
      if (code !== UNSEEN) pixels.data.set(colors.subarray(3 * code, 3 * code + 3), at);
      pixels.data[at + 3] = 255 * (code === UNSEEN ? DIMMED : OPACITY);
    });
    const small = new OffscreenCanvas(map.columns, map.rows);
    small.getContext("2d").putImageData(pixels, 0, 0);
    canvas.width = ENLARGED * map.columns;
    canvas.height = ENLARGED * map.rows;
    canvas.getContext("2d").drawImage(small, 0, 0, canvas.width, canvas.height);
  }

  function start() {
    const gallery = element("gallery");
    if (!gallery) return;
    gallery.addEventListener("click", (event) => {
      const button = event.target.closest("[data-word]");
      if (!button) return;
      event.preventDefault();
      const card = button.closest(".card") ?? element(`picture-${chosen.picture}`);
      const top = card.getBoundingClientRect().top;
      choose(+button.dataset.picture, +button.dataset.word);
      if (!button.closest(".card")) return;
      // the inspector has left its old place: the card stays where it was under the pointer
      window.scrollBy(0, card.getBoundingClientRect().top - top);
      element("inspector").scrollIntoView({ block: "nearest" });
    });
    // words are links, which break between lines as text does, and act as buttons
    gallery.addEventListener("keydown", (event) => {
      if (event.key !== " " || !event.target.matches(".word")) return;
      event.preventDefault();
      event.target.click();
    });
    element("inspector").addEventListener("keydown", (event) => {
      if (event.key === "Escape") element(`picture-${chosen.picture}`).querySelector('[aria-pressed="true"]').focus();
    });
    element("toggle").addEventListener("click", () => {
      chosen.shown = !chosen.shown;
      element("toggle").setAttribute("aria-pressed", String(chosen.shown));
      settle();
    });
    choose(0, 0);
  }

  start();

  const options = { actions: false, renderer: "svg", ast: true, tooltip: { disableDefaultStyle: true } };
  for (const [name, chart] of Object.entries(data.charts)) window.vegaEmbed(element(`chart-${name}`), chart, options);
})();
