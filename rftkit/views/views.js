/* Adds a filter, sorting and pages to every list of a page, and keeps them in the address. All of it
   is readable without this script. */
(() => {
  /* A chart is an image for those who do not trust a notebook; here it is drawn, and has points. */
  document.querySelectorAll(".rk img.rk-still").forEach((image) => {
    const holder = document.createElement("template");
    holder.innerHTML = decodeURIComponent(image.src.slice(image.src.indexOf(",") + 1));
    const drawn = holder.content.firstElementChild;
    drawn.querySelector("style")?.remove();
    image.replaceWith(drawn);
  });

  const isPage = document.body.classList.contains("rk-page");
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

  const jumps = window.rkJumps ??= new Map(); // id of a list's holder -> show only the rows of a link

  /* The address of a page: `#~0.q=word&0.open=3`, by the number of the list. */
  const address = new URLSearchParams(isPage && location.hash.startsWith("#~") ? location.hash.slice(2) : "");
  const remember = (name, value) => {
    if (!isPage) return;
    if (value) address.set(name, value); else address.delete(name);
    const said = address.toString();
    history.replaceState(null, "", said ? `#~${said}` : location.pathname + location.search);
  };

  function upgrade(list, number) {
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
    const key = (name) => `${number}.${name}`;
    let order = items, found = items, start = 0, only = null;

    const filter = make("input", { type: "search", placeholder: `Filter ${nouns}…` });
    filter.setAttribute("aria-label", `Filter ${nouns}`);
    const group = make("select", { ariaLabel: `Which ${nouns}` });
    const back = make("button", { type: "button", textContent: "Previous" });
    const next = make("button", { type: "button", textContent: "Next" });
    const pages = make("nav", { className: "rk-pages", ariaLabel: "Pages" }, back, next);

    function show() {
      const terms = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      found = order.filter((item) =>
        (!only || only.has(item.dataset.row)) && (!group.value || item.dataset.group === group.value) &&
        terms.every((term) => wordsOf(item).includes(term)));
      start = Math.max(0, Math.min(start, size * Math.floor((found.length - 1) / size)));
      const page = new Set(found.slice(start, start + size));
      holder.append(...order);
      const matches = new Set(found);
      for (const item of items) {
        item.hidden = !matches.has(item);
        item.classList.toggle("rk-off", !page.has(item)); // another page: paper has it
      }
      remember(key("q"), filter.value);
      remember(key("group"), group.value);
      remember(key("at"), start ? String(start) : "");
      const part = found.length > size ? `${start + 1} to ${start + page.size} of ` : "";
      const of = found.length < items.length ? ` of ${items.length.toLocaleString("en")}` : "";
      status.textContent = `${part}${found.length.toLocaleString("en")}${of} ${found.length === 1 && !of ? noun : nouns}`;
      pages.hidden = items.length <= size;
      back.disabled = start === 0;
      next.disabled = start + size >= found.length;
    }
    const again = () => { start = 0; show(); };
    const toItem = (item) => { // open it, on the page that has it
      start = size * Math.floor(Math.max(0, found.indexOf(item)) / size);
      show();
      if (item.matches("details")) item.open = true;
      item.scrollIntoView({ block: "center" });
    };
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
      remember(key("order"), chooser.value);
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
    const heads = holder.closest("table")?.querySelectorAll("thead th") ?? []; // not those of tables in cards
    heads.forEach((th, column, all) => {
      const button = make("button", { type: "button" }, ...th.childNodes);
      th.append(button);
      button.addEventListener("click", () => {
        const down = th.ariaSort === "ascending";
        all.forEach((other) => other.removeAttribute("aria-sort"));
        th.ariaSort = down ? "descending" : "ascending";
        remember(key("column"), `${column}${down ? "-" : ""}`);
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
        remember(key("only"), rows ? [...rows].join(" ") : "");
        remember(key("said"), words);
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
        const only = here.length === 1 && items.find((item) => item.dataset.row === here[0]);
        choose(new Set(here), `${Number(count).toLocaleString("en")} ${count === "1" ? noun : nouns} ${words}${away}`);
        if (only) only.open = true;
        list.scrollIntoView({ block: "start" });
        all.focus({ preventScroll: true });
      });
      if (address.has(key("only"))) choose(new Set(address.get(key("only")).split(" ")), address.get(key("said")) ?? "");
    }
    filter.addEventListener("input", again);
    group.addEventListener("change", again);
    back.addEventListener("click", () => { start -= size; show(); });
    next.addEventListener("click", () => { start += size; show(); });
    if (items.length > 5) list.prepend(tools); // a short list is read faster than filtered
    status.after(pages);
    const [q, given, at, by] = ["q", "group", "at", "order"].map((name) => address.get(key(name)) ?? "");
    const open = items[address.get(key("open"))], column = address.get(key("column"));
    const isKept = [...address.keys()].some((name) => name.startsWith(`${number}.`));
    if (by) { chooser.value = by; chooser.dispatchEvent(new Event("change")); }
    if (column) {
      const button = heads[parseInt(column)]?.querySelector("button");
      button?.click();
      if (column.endsWith("-")) button?.click();
    }
    filter.value = q;
    group.value = given;
    start = Number(at);
    show();
    if (open) toItem(open); else if (isKept) list.scrollIntoView({ block: "start" });
    items.forEach((item, place) => item.addEventListener("toggle", (event) => {
      if (event.target !== item || item.dataset.printing) return;
      if (item.open) remember(key("open"), String(place));
      else if (address.get(key("open")) === String(place)) remember(key("open"), "");
    }));
  }
  document.querySelectorAll(".rk-list:not([data-ready])").forEach(upgrade);
  /* A box that scrolls is a stop for the keyboard; one that does not is none. */
  const stops = () => document.querySelectorAll(".rk .rk-scroll, .rk pre").forEach((box) => {
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
  stops();
  addEventListener("resize", stops);
  document.addEventListener("toggle", stops, true);

  /* Copy and CSV of a table: all its rows that match, on whichever page they are. */
  const valueOf = (cell) => {
    const value = cell.dataset.v || (cell.querySelector(".rk-text") ?? cell).innerText.trim();
    return /^[=+@\t]/.test(value) || (value.startsWith("-") && isNaN(value)) ? `'${value}` : value;
  };
  const rowsOf = (table) => [...table.rows].filter((row) => !row.hidden)
    .map((row) => [...row.cells].map((cell) => cell.textContent && valueOf(cell)));
  const csv = (rows) => rows.map((row) => row.map((value) =>
    /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value).join(",")).join("\r\n");
  async function copy(words) {
    try { await navigator.clipboard.writeText(words); } catch {
      const field = make("textarea", { value: words });
      document.body.append(field);
      field.select();
      const isCopied = document.execCommand("copy");
      field.remove();
      return isCopied;
    }
    return true;
  }
  function offer(table, number) {
    const copied = make("button", { type: "button", textContent: "Copy" });
    copied.addEventListener("click", async () => {
      const isCopied = await copy(rowsOf(table).map((row) => row.map((value) => value.replace(/\s+/g, " ")).join("\t")).join("\n"));
      copied.textContent = isCopied ? "Copied" : "The browser forbids it: use CSV";
      setTimeout(() => { copied.textContent = "Copy"; }, 2000);
    });
    const saved = make("button", { type: "button", textContent: "CSV" });
    saved.addEventListener("click", () => {
      const words = (table.caption?.textContent || `${document.title} table ${number + 1}`).replace(/[^\w]+/g, "-");
      const href = URL.createObjectURL(new Blob(["\ufeff", csv(rowsOf(table))], { type: "text/csv" }));
      make("a", { href, download: `${words}.csv` }).click();
      URL.revokeObjectURL(href);
    });
    const name = table.caption?.textContent || "this table";
    copied.ariaLabel = `Copy ${name}`;
    saved.ariaLabel = `Save ${name} as CSV`;
    (table.closest(".rk-scroll") ?? table).after(make("p", { className: "rk-take" }, copied, " ", saved));
  }
  if (isPage) document.querySelectorAll(".rk table").forEach(offer);

  /* Paper shows what is folded away. */
  addEventListener("beforeprint", () => document.querySelectorAll(".rk details:not([open])").forEach((each) => {
    each.dataset.printing = "true";
    each.open = true;
  }));
  addEventListener("afterprint", () => document.querySelectorAll(".rk details[data-printing]").forEach((each) => {
    each.open = false;
    setTimeout(() => delete each.dataset.printing);
  }));
})();
