"use strict";
// Galleries: the address contains the view (#show=worst&class=3&sort=low), so that it can be saved and shared.
(() => {
  const form = document.getElementById("filter"), box = document.getElementById("tiles");
  if (!form || !box) return;
  const tiles = [...box.children].map((element) => ({
    element, id: element.dataset.id, tags: element.dataset.tags.split(" "), miou: Number(element.dataset.miou ?? NaN),
    little: "little" in element.dataset, iou: new Map(element.dataset.iou.trim().split(" ").filter(Boolean).map((pair) => pair.split(":"))),
  }));
  const show = () => {
    const tag = form.show.value, label = form.class.value, sort = form.sort.value;
    const score = (tile) => (label ? Number(tile.iou.get(label) || NaN) : tile.miou);
    const shown = tiles.filter((tile) => (tag === "all" || tile.tags.includes(tag)) && (!label || tile.iou.has(label)));
    const byId = (a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
    const order = (a, b) => (sort === "low" ? score(a) - score(b) : a.little - b.little || score(b) - score(a));
    shown.sort((a, b) => (sort === "id" ? 0 : order(a, b)) || byId(a, b));
    for (const tile of tiles) tile.element.hidden = true;
    for (const tile of shown) { tile.element.hidden = false; box.append(tile.element); }
    document.getElementById("count").textContent = `${shown.length} of ${tiles.length}`;
  };
  const read = () => {
    const wanted = new URLSearchParams(location.hash.slice(1));
    for (const name of ["show", "class", "sort"]) {
      const given = wanted.get(name);
      if (given !== null && [...form[name].options].some((option) => option.value === given)) form[name].value = given;
    }
    show();
  };
  form.addEventListener("change", () => {
    show();
    history.replaceState(null, "", "#" + new URLSearchParams(new FormData(form)));
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", read);
  read();
})();
// Sortable tables.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    const value = (row) => Number(row.cells[column].dataset.sort);
    const sign = down ? -1 : 1;
    const rows = [...body.rows].sort((a, b) => sign * (value(a) - value(b)));
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
  }));
}
// The threshold slider (pipeline/report/slider.py): a pixel has a class where more thresholds are below its greatest map than the
// slider's number of steps.
(() => {
  const form = document.getElementById("slider");
  if (!form) return;
  const data = JSON.parse(document.getElementById("slider-data").textContent), ranges = [...form.querySelectorAll(".range")];
  const figures = [...document.getElementById("masks").children], unpacked = new Map();
  const unpack = async (number) => {
    const packed = Uint8Array.from(atob(data.maps[number]), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    for (let place = 1; place < bytes.length; place++) bytes[place] += bytes[place - 1];   // modulo 256
    return bytes;
  };
  const draw = (figure, maps, bytes, steps) => {
    const canvas = figure.querySelector("canvas"), context = canvas.getContext("2d");
    const picture = context.createImageData(canvas.width, canvas.height), pixels = bytes.length / 2;
    const labels = [[], [data.ignore, "ignored"], ...maps.values.map((value) => [data.colours[value], data.names[value]])];
    const words = labels.map(([colour]) => (colour ? (255 << 24 | colour[2] << 16 | colour[1] << 8 | colour[0]) >>> 0 : 0));
    const drawn = new Uint32Array(picture.data.buffer), counts = words.map(() => 0);   // RGBA, in little-endian words
    for (let place = 0; place < pixels; place++) {
      const label = bytes[place] > steps[0] ? 2 + bytes[pixels + place] : Number(bytes[place] > steps.at(-1));
      counts[label]++;
      drawn[place] = words[label];
    }
    context.putImageData(picture, 0, 0);
    const shares = labels.map(([colour, name], label) => {
      const share = Object.assign(document.createElement("span"), {className: "class"});
      const swatch = Object.assign(document.createElement("i"), {className: "swatch"});
      swatch.style.background = `rgb(${colour})`;
      share.append(swatch, `${name} ${Math.round(100 * counts[label] / pixels)} %`);
      return share;
    }).filter((_, label) => label && counts[label]);
    const caption = figure.querySelector("figcaption span");
    caption.replaceChildren(...(shares.length ? shares : ["background only"]));
    canvas.setAttribute("aria-label", `mask: ${[...caption.childNodes].map((node) => node.textContent).join(", ")}`);
  };
  let drawn = 0;
  const show = async () => {
    const kind = data.kinds[form.kind.value], mine = ++drawn;
    const steps = kind.settings.map((_, number) => Math.round(100 * ranges[number].querySelector("input").value));
    ranges.forEach((range, number) => { range.querySelector("output").textContent = ((steps[number] ?? 0) / 100).toFixed(2); });
    document.getElementById("setting").replaceChildren(...kind.settings.flatMap(([key, used], number) => {
      const code = Object.assign(document.createElement("code"), {textContent: `${key}=${steps[number] / 100}`});
      const note = Object.assign(document.createElement("span"), {textContent: used === null ? "" : `in the run ${used}`});
      return [code, note, " "];
    }));
    for (const [number, figure] of figures.entries()) {
      const maps = kind.images[number];
      figure.hidden = !maps;
      if (!maps) continue;
      if (!unpacked.has(maps.maps)) unpacked.set(maps.maps, unpack(maps.maps));
      const bytes = await unpacked.get(maps.maps);
      if (mine !== drawn) return;   // the slider was moved meanwhile
      draw(figure, maps, bytes, steps);
    }
    form.dataset.drawn = drawn;
  };
  const reset = () => {
    const kind = data.kinds[form.kind.value];
    ranges.forEach((range, number) => {
      range.hidden = number >= kind.settings.length;
      if (range.hidden) return;
      const [key, used] = kind.settings[number];
      range.querySelector("span").textContent = kind.settings.length > 1 ? key.split(".").pop() : "background threshold";
      range.querySelector("input").value = used ?? 0.5;
    });
    document.getElementById("after").textContent = kind.after ? `Before ${kind.after}, which changes the masks.` : "";
    show();
  };
  form.addEventListener("input", (event) => {
    if (event.target.type !== "range") return;
    const inputs = ranges.filter((range) => !range.hidden).map((range) => range.querySelector("input"));
    if (inputs.length > 1 && Number(inputs[0].value) < Number(inputs[1].value))   // the higher threshold is the first
      inputs.find((input) => input !== event.target).value = event.target.value;
    show();
  });
  form.kind.addEventListener("change", reset);
  form.querySelector("button").addEventListener("click", reset);
  form.addEventListener("submit", (event) => event.preventDefault());
  reset();
})();
