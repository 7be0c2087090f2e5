(() => {
  "use strict";
  const PAGE = 50;
  const rows = [...document.querySelectorAll("#rows tr")];
  const tools = document.querySelector(".tools");
  if (!tools) return;
  const query = tools.querySelector("input"), kind = tools.querySelector("select"), clear = tools.querySelector("button");
  const count = document.getElementById("count"), more = document.getElementById("more");
  const texts = rows.map((row) => row.textContent.toLowerCase());
  let wanted = {}, shown = PAGE;

  function show() {
    const words = (wanted.q || "").toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    rows.forEach((row, i) => {
      const hit = words.every((word) => texts[i].includes(word))
        && (!wanted.kind || row.dataset.kinds.split(" ").includes(wanted.kind))
        && (!wanted.gold || JSON.parse(row.dataset.pairs).some(([g, p]) => g === wanted.gold && (!wanted.pred || p === wanted.pred)));
      if (hit) found += 1;
      row.hidden = !hit || found > shown;
    });
    const pair = wanted.gold ? ` · ${wanted.gold} taken for ${wanted.pred || "another"}` : "";
    count.textContent = `${found} of ${rows.length}${pair}`;
    more.hidden = found <= shown;
    clear.hidden = !Object.values(wanted).some(Boolean);
  }
  function read() {
    wanted = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    query.value = wanted.q || "";
    if (kind) kind.value = wanted.kind || "";
    shown = PAGE;
    show();
  }
  function write(change) {
    wanted = { ...wanted, ...change };
    const kept = Object.fromEntries(Object.entries(wanted).filter(([, value]) => value));
    history.replaceState(null, "", "#" + new URLSearchParams(kept));
    shown = PAGE;
    show();
  }
  query.addEventListener("input", () => write({ q: query.value }));
  if (kind) kind.addEventListener("change", () => write({ kind: kind.value }));
  clear.addEventListener("click", () => { query.value = ""; if (kind) kind.value = ""; write({ q: "", kind: "", gold: "", pred: "" }); });
  more.addEventListener("click", () => { shown += PAGE; show(); });
  addEventListener("hashchange", () => { read(); if (wanted.gold) tools.scrollIntoView(); });
  read();
})();
