// The page reads without this script: it shows values under the pointer, filters, sorts, and zooms the matrix.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);

  // Values: of whatever the pointer, a finger or the focus is on.
  const tip = one("#tip");
  const show = (text, x, y) => {
    tip.textContent = text;
    tip.style.left = "0"; // the text breaks as the window allows, and not as the last place did
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8));
    const top = y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18;
    tip.style.left = `${left}px`;
    tip.style.top = `${Math.max(8, top)}px`;
  };
  let chosen = null; // by the keys: its value stays beside it while the page scrolls
  const hide = () => { tip.hidden = true; };
  const showChosen = () => {
    const box = chosen.getBoundingClientRect();
    show(chosen.dataset.tip, box.left + box.width / 2, box.top + box.height / 2);
  };
  for (const kind of ["pointerdown", "pointermove"]) { // a finger that taps does not move
    document.addEventListener(kind, (event) => {
      const over = event.target.closest("[data-tip]");
      chosen = null;
      if (over) show(over.dataset.tip, event.clientX, event.clientY); else hide();
    });
  }
  document.documentElement.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  // Scrolling of a frame in the page is heard on its way down alone.
  document.addEventListener("scroll", () => { if (chosen) showChosen(); else hide(); }, { passive: true, capture: true });

  // A figure with the focus: the arrow keys go through its values.
  for (const figure of all("svg[tabindex]")) {
    const parts = all("[data-tip]", figure);
    let at = -1;
    const go = (to) => {
      parts[at]?.classList.remove("on");
      at = Math.max(0, Math.min(parts.length - 1, to));
      chosen = parts[at];
      chosen.classList.add("on");
      chosen.scrollIntoView({ block: "nearest", inline: "nearest" });
      showChosen();
    };
    figure.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!parts.length) return;
      if (step) go(at + step);
      else if (event.key === "Home") go(0);
      else if (event.key === "End") go(parts.length - 1);
      else if (event.key === "Escape") hide();
      else if (event.key === "Enter" && parts[at]) parts[at].dispatchEvent(new Event("click", { bubbles: true }));
      else return;
      event.preventDefault();
    });
    figure.addEventListener("blur", () => { parts[at]?.classList.remove("on"); chosen = null; hide(); });
  }

  // Light, dark, or what the system says. A choice outlives the reload of a page that is watched.
  const root = document.documentElement;
  if (history.state?.theme) root.dataset.theme = history.state.theme;
  one("#theme")?.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    history.replaceState({ theme: root.dataset.theme }, "");
  });

  // One class, or one mistake: what is of another one is hidden, or fades on the maps.
  const select = one("#class");
  const state = one("#filter-state");
  const filter = (label, answer = null) => {
    let shown = 0;
    for (const item of all("[data-label]")) {
      const picture = item.dataset.answer !== undefined; // else the row of a class
      const own = answer === null || !picture
        ? label === "" || item.dataset.label === label || item.dataset.answer === label
        : item.dataset.label === label && item.dataset.answer === answer;
      item.hidden = !own;
      if (own && picture) shown += 1;
    }
    for (const cloud of all(".cloud")) cloud.classList.toggle("faded", label !== "" && cloud.dataset.class !== label);
    for (const list of all(".gallery")) {
      const empty = list.nextElementSibling;
      if (empty?.classList.contains("empty")) empty.hidden = all("li:not([hidden])", list).length > 0;
    }
    if (state) state.textContent = label === "" ? "" : `${shown} picture${shown === 1 ? "" : "s"}`;
  };
  select?.addEventListener("change", () => filter(select.value));
  for (const cell of all("#matrix .cell")) {
    cell.addEventListener("click", () => {
      if (select) select.value = cell.dataset.row;
      filter(cell.dataset.row, cell.dataset.column);
      one("#mistakes")?.scrollIntoView();
    });
  }
  for (const button of all("[data-class-button]")) {
    button.addEventListener("click", () => {
      const same = select?.value === button.dataset.classButton;
      if (select) select.value = same ? "" : button.dataset.classButton;
      filter(same ? "" : button.dataset.classButton);
    });
  }

  // The matrix: larger and smaller.
  const matrix = one("#matrix");
  const natural = matrix?.getBoundingClientRect().width;
  let zoom = 1;
  const resize = (by) => {
    zoom = Math.max(0.4, Math.min(8, zoom * by));
    matrix.style.width = `${natural * zoom}px`;
  };
  one("#larger")?.addEventListener("click", () => resize(1.5));
  one("#smaller")?.addEventListener("click", () => resize(1 / 1.5));

  // Tables: a click on a heading sorts, an input filters.
  // Cells by the number with which they begin, else by their text; those without a value are last, up or down.
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = (cell.dataset.value ?? cell.textContent).trim().toLowerCase();
    return { text, number: parseFloat(text.replace(/(\d),(?=\d)/g, "$1")), none: text === "" || text === "–" };
  };
  const compared = (x, y) => {
    const words = Number.isNaN(x.number) - Number.isNaN(y.number);
    return words || x.number - y.number || (x.text < y.text ? -1 : Number(x.text > y.text));
  };
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((heading, column) => {
      one("button", heading)?.addEventListener("click", () => {
        const up = heading.getAttribute("aria-sort") !== "ascending";
        for (const other of all("th", table)) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const rows = [...body.rows].sort((a, b) => {
          const [x, y] = [value(a, column), value(b, column)];
          return x.none - y.none || (up ? compared(x, y) : compared(y, x));
        });
        body.append(...rows);
      });
    });
  }
  for (const input of all("input[data-table]")) {
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of one(`#${input.dataset.table}`).tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }

  // On paper every number is shown.
  addEventListener("beforeprint", () => { for (const each of all("details")) each.open = true; });
})();
