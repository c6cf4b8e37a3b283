/* Adds a filter, sorting and pages to every list of a page. The list is readable without it. */
(() => {
  const make = (name, props = {}, ...children) => {
    const element = Object.assign(document.createElement(name), props);
    // Jupyter reads letters typed on a focused button as commands, "dd" among them.
    if (name === "button" || name === "select") element.dataset.lmSuppressShortcuts = "true";
    element.append(...children);
    return element;
  };
  const option = (label, value) => make("option", { textContent: label, value });
  const compare = (a, b) => {
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
  };

  const jumps = new Map(); // id of a list's holder -> show only the rows of a link

  function upgrade(list) {
    list.dataset.ready = "";
    const holder = list.querySelector(".rk-items");
    const rest = list.querySelector("script.rk-rest");
    if (rest) holder.insertAdjacentHTML("beforeend", rest.textContent);
    const items = [...holder.children];
    if (items.length < 2) return;
    const words = new Map(); // read when somebody first filters: a long list opens sooner
    const wordsOf = (item) => words.get(item) ?? words.set(item, item.textContent.toLowerCase()).get(item);
    const { noun } = list.dataset, nouns = `${noun}s`, size = Number(list.dataset.page);
    const status = list.querySelector(".rk-count");
    let order = items, start = 0, only = null;

    const filter = make("input", { type: "search", placeholder: `Filter ${nouns}…` });
    filter.setAttribute("aria-label", `Filter ${nouns}`);
    const group = make("select", { ariaLabel: `Which ${nouns}` });
    const back = make("button", { type: "button", textContent: "Previous" });
    const next = make("button", { type: "button", textContent: "Next" });
    const pages = make("nav", { className: "rk-pages", ariaLabel: "Pages" }, back, next);

    function show() {
      const terms = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = order.filter((item) =>
        (!only || only.has(item.dataset.row)) && (!group.value || item.dataset.group === group.value) &&
        terms.every((term) => wordsOf(item).includes(term)));
      start = Math.max(0, Math.min(start, size * Math.floor((found.length - 1) / size)));
      const page = new Set(found.slice(start, start + size));
      holder.append(...order);
      for (const item of items) item.hidden = !page.has(item);
      const part = found.length > size ? `${start + 1} to ${start + page.size} of ` : "";
      const of = found.length < items.length ? ` of ${items.length.toLocaleString("en")}` : "";
      status.textContent = `${part}${found.length.toLocaleString("en")}${of} ${found.length === 1 && !of ? noun : nouns}`;
      pages.hidden = items.length <= size;
      back.disabled = start === 0;
      next.disabled = start + size >= found.length;
    }
    const again = () => { start = 0; show(); };
    /* Missing values come last in both directions. */
    function sort(value, down) {
      const keys = new Map(items.map((item) => [item, value(item)]));
      const blank = (item) => Number(keys.get(item) === "");
      order = [...items].sort((a, b) =>
        blank(a) - blank(b) || (down ? -1 : 1) * compare(keys.get(a), keys.get(b)));
      again();
    }

    const tools = make("div", { className: "rk-tools" }, filter);
    const groups = [...new Set(items.map((item) => item.dataset.group).filter(Boolean))];
    group.append(option(`all ${nouns}`, ""), ...groups.map((name) =>
      option(`${name} (${items.filter((item) => item.dataset.group === name).length})`, name)));
    if (groups.length > 1) tools.append(group);

    const sorts = JSON.parse(list.dataset.sorts);
    const chooser = make("select", { ariaLabel: "Order" }, option(list.dataset.order ?? "in the order of the file", ""),
      ...sorts.map(([name, label]) => option(label, name)));
    chooser.addEventListener("change", () => {
      const name = chooser.value.replace(/^-/, "");
      if (name) sort((item) => item.dataset[name] ?? "", chooser.value !== name);
      else { order = items; again(); }
    });
    if (sorts.length) tools.append(chooser);

    if (items.every((item) => item.matches("details"))) {
      const open = make("button", { type: "button", textContent: "Open all" });
      open.addEventListener("click", () => {
        const opening = open.textContent === "Open all";
        for (const item of items) item.open = opening;
        open.textContent = opening ? "Close all" : "Open all";
      });
      tools.append(open);
    }
    list.querySelectorAll("thead th").forEach((th, column, all) => {
      const button = make("button", { type: "button" }, ...th.childNodes);
      th.append(button);
      button.addEventListener("click", () => {
        const down = th.ariaSort === "ascending";
        all.forEach((other) => other.removeAttribute("aria-sort"));
        th.ariaSort = down ? "descending" : "ascending";
        sort(({ cells: { [column]: cell } }) => cell.dataset.v ?? cell.textContent.trim(), down);
      });
    });
    if (holder.id) { // rows that numbers of the page lead to
      const chip = make("p", { className: "rk-only", hidden: true }), said = make("strong");
      const all = make("button", { type: "button", textContent: `Show all ${nouns}` });
      chip.append(said, " ", all);
      list.prepend(chip);
      const choose = (rows, words) => {
        only = rows;
        chip.hidden = !rows;
        said.textContent = words;
        filter.value = group.value = "";
        again();
      };
      all.addEventListener("click", () => choose(null, ""));
      jumps.set(holder.id, (link) => {
        const { rows, said: words, all: count } = link.dataset;
        const here = rows ? rows.split(" ") : [];
        const away = here.length < count ? ` (${link.title || "the others are not in this page"})` : "";
        choose(new Set(here), `${Number(count).toLocaleString("en")} ${count === "1" ? noun : nouns} ${words}${away}`);
        list.scrollIntoView({ block: "start" });
        all.focus({ preventScroll: true });
      });
    }
    filter.addEventListener("input", again);
    group.addEventListener("change", again);
    back.addEventListener("click", () => { start -= size; show(); });
    next.addEventListener("click", () => { start += size; show(); });
    if (items.length > 5) list.prepend(tools); // a short list is read faster than filtered
    status.after(pages);
    show();
  }
  document.querySelectorAll(".rk-list:not([data-ready])").forEach(upgrade);
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a.rk-jump");
    const jump = link && jumps.get(link.hash.slice(1));
    if (!jump) return;
    event.preventDefault();
    jump(link);
  });
})();
