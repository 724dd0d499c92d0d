"use strict";
// Galleries: the address contains the view (#show=worst&class=3&sort=low), so that it can be saved and shared.
(() => {
  const form = document.getElementById("filter"), box = document.getElementById("tiles");
  if (!form || !box) return;
  const tiles = [...box.children].map((element) => ({
    element, id: element.dataset.id, tags: element.dataset.tags.split(" "), miou: Number(element.dataset.miou ?? NaN),
    iou: new Map(element.dataset.iou.trim().split(" ").filter(Boolean).map((pair) => pair.split(":"))),
  }));
  const show = () => {
    const tag = form.show.value, label = form.class.value, sort = form.sort.value;
    const score = (tile) => (label ? Number(tile.iou.get(label) || NaN) : tile.miou);
    const shown = tiles.filter((tile) => (tag === "all" || tile.tags.includes(tag)) && (!label || tile.iou.has(label)));
    const byId = (a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
    shown.sort((a, b) => (sort === "id" ? 0 : (score(b) - score(a)) * (sort === "low" ? -1 : 1)) || byId(a, b));
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
