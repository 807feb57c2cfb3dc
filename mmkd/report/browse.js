"use strict";
// Rows come as data: each text enters the page as text, never as markup, and only one leaf of rows is drawn.
(() => {
  const LEAF = 50;
  const find = (id) => document.getElementById(id);
  const { filters, rows, pictures } = JSON.parse(find("data").textContent);

  const make = (tag, style, ...inside) => {
    const made = document.createElement(tag);
    if (style) made.className = style;
    made.append(...inside);
    return made;
  };

  const seen = (row) => {
    if (row.picture === null) return make("div", "none", "no picture here");
    const picture = make("img");
    picture.src = pictures[row.picture];
    picture.alt = "";
    const frame = make("div", "seen", picture);
    for (const box of row.boxes) {
      const drawn = make("div", "box " + box.style, make("span", "", box.label));
      for (const side of ["left", "top", "width", "height"]) drawn.style[side] = box[side] + "%";
      frame.append(drawn);
    }
    return frame;
  };

  const card = (row) => {
    const told = make("div", "", make("h3", "", row.title));
    const lines = make("dl");
    for (const [name, text] of row.lines) lines.append(make("dt", "", name), make("dd", "", text));
    told.append(lines);
    const nodes = make("ol", "nodes");
    for (const node of row.nodes) {
      const line = make("li", node.style, make("b", "", node.head), " ", make("span", "", node.text));
      line.style.marginLeft = 16 * node.depth + "px";
      nodes.append(line);
    }
    if (row.nodes.length) told.append(nodes);
    for (const [name, text] of row.more) {
      told.append(make("details", "", make("summary", "", name), make("pre", "", text)));
    }
    return make("article", "card row", seen(row), told);
  };

  const choices = filters.map((filter) => {
    const choice = make("select");
    choice.append(new Option("all", ""));
    for (const [value, count] of filter.values) choice.append(new Option(`${value} (${count})`, value));
    find("filters").append(make("label", "", filter.name, choice));
    return choice;
  });
  const search = make("input");
  search.type = "search";
  find("filters").append(make("label", "", "holds the words", search));

  const words = rows.map(() => null);
  const wordsOf = (place) => {
    const row = rows[place];
    words[place] ??= [row.title, ...row.lines.flat(), ...row.nodes.map((node) => node.text)].join("\n").toLowerCase();
    return words[place];
  };

  let fitting = [], leaf = 0;
  const draw = () => {
    const first = leaf * LEAF, shown = fitting.slice(first, first + LEAF);
    find("rows").replaceChildren(...shown.map((place) => card(rows[place])));
    const range = shown.length ? `${first + 1} to ${first + shown.length} of ${fitting.length}` : "none";
    find("range").textContent = range;
    find("before").disabled = leaf === 0;
    find("after").disabled = first + LEAF >= fitting.length;
  };
  const choose = () => {
    const wanted = choices.map((choice) => choice.value);
    const said = search.value.trim().toLowerCase();
    fitting = [...rows.keys()].filter((place) =>
      rows[place].facets.some((facet) => wanted.every((value, i) => !value || facet[i] === value)) &&
      (!said || wordsOf(place).includes(said)));
    leaf = 0;
    draw();
  };
  const turn = (by) => { leaf += by; draw(); find("browse").scrollIntoView(); };

  find("filters").addEventListener("input", choose);
  find("before").addEventListener("click", () => turn(-1));
  find("after").addEventListener("click", () => turn(1));
  choose();
})();
