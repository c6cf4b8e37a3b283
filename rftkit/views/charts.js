/* Points of charts: what they say at once, arrow keys from point to point, and links to their rows
   (`views.js` has the lists that they lead to). A panel runs this script too. */
(() => {
  if (window.rkCharts) return; // a notebook has this script once for each output and each panel
  window.rkCharts = true;
  const tip = Object.assign(document.createElement("div"), { className: "rk-tip", hidden: true, ariaHidden: "true" });
  document.body.append(tip);
  const pointOf = (event) => event.target.closest?.(".rk-pt");
  const tell = (event) => {
    const point = pointOf(event);
    tip.hidden = !point;
    if (!point) return;
    const title = point.querySelector("title");
    if (title) { // the browser's own tip would come later, beside this one
      point.ariaLabel ??= title.textContent;
      title.remove();
    }
    tip.textContent = point.ariaLabel;
    const box = point.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${box.top > tip.offsetHeight + 8 ? box.top - tip.offsetHeight - 6 : box.bottom + 6}px`;
  };
  for (const name of ["pointerover", "focusin"]) document.addEventListener(name, tell);
  for (const name of ["focusout", "scroll"]) document.addEventListener(name, () => { tip.hidden = true; }, { passive: true });
  document.addEventListener("keydown", (event) => {
    const point = pointOf(event);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") tip.hidden = true;
    if (!point || !step) return;
    event.preventDefault();
    const all = [...point.closest("svg").querySelectorAll(".rk-pt")];
    const next = all[Math.max(0, Math.min(all.length - 1, all.indexOf(point) + step))];
    point.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a.rk-jump");
    const jump = link?.hasAttribute("href") && window.rkJumps?.get(link.getAttribute("href").slice(1));
    if (!jump) return;
    event.preventDefault();
    jump(link);
  });
})();
