"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const about = JSON.parse(find("folder").textContent);
  const rows = [...document.querySelectorAll(".row")];
  const byId = new Map(rows.map((row) => [row.dataset.id, row]));
  const frame = find("frame"), comment = find("comment"), search = find("search");
  const VERDICTS = { accept: "accepted", reject: "rejected" };
  const isWide = () => window.matchMedia("(min-width:900px)").matches;
  let kept = {}, current = null, filter = "all", isStored = true, isDirty = false, wentForward = false;
  let settings = null;  // of the viewer, from case to case

  // ---- what was decided ---------------------------------------------------------------------------------------------

  try {
    kept = JSON.parse(localStorage.getItem(about.key) || "{}");
  } catch (error) {
    isStored = false;
  }

  function store() {
    try {
      localStorage.setItem(about.key, JSON.stringify(kept));
    } catch (error) {
      isStored = false;
    }
    isDirty = !isStored;
    find("unstored").hidden = isStored;
  }

  const entryOf = (row) => kept[row.dataset.id] || {};

  function decide(id, change) {
    const before = kept[id] || { verdict: "", comment: "" };
    const next = { ...before, ...change, at: new Date().toISOString().slice(0, 19) + "Z" };
    if (next.verdict || next.comment) kept[id] = next;
    else delete kept[id];
    store();
    paint();
  }

  function verdict(name) {
    if (!current) return;
    comment.blur();
    const row = current;
    decide(row.dataset.id, { verdict: name });
    const order = listed();
    const waiting = order.slice(order.indexOf(row) + 1).find((other) => !entryOf(other).verdict);
    if (name && waiting) open(waiting);
  }

  // ---- the list -----------------------------------------------------------------------------------------------------

  const FILTERS = {
    all: () => true,
    open: (entry) => !entry.verdict,
    accept: (entry) => entry.verdict === "accept",
    reject: (entry) => entry.verdict === "reject",
    comment: (entry) => Boolean(entry.comment),
  };
  const isListed = (row) => {
    const entry = entryOf(row);
    return FILTERS[filter](entry) && row.dataset.id.toLowerCase().includes(search.value.trim().toLowerCase());
  };
  const listed = () => rows.filter((row) => isListed(row) || row === current);

  function paint() {
    const counts = { accept: 0, reject: 0, comment: 0 };
    for (const row of rows) {
      const entry = entryOf(row);
      row.dataset.verdict = entry.verdict || "";
      row.querySelector(".mark").textContent = VERDICTS[entry.verdict] || "";
      row.querySelector(".said").textContent = entry.comment || "";
      row.hidden = !isListed(row);
      row.classList.toggle("current", row === current);
      if (entry.verdict) counts[entry.verdict] += 1;
      if (entry.comment) counts.comment += 1;
    }
    for (const group of document.querySelectorAll(".group")) {
      group.hidden = ![...group.querySelectorAll(".row")].some((row) => !row.hidden);
    }
    const done = counts.accept + counts.reject;
    const told = { all: rows.length, open: rows.length - done, ...counts };
    for (const button of document.querySelectorAll("[data-filter]")) {
      button.querySelector("b").textContent = told[button.dataset.filter];
      button.setAttribute("aria-pressed", String(button.dataset.filter === filter));
    }
    find("progress").max = rows.length;
    find("progress").value = done;
    find("done").textContent = `${done} of ${rows.length} reviewed`;
    if (current) {
      const entry = entryOf(current);
      for (const button of document.querySelectorAll("[data-verdict]")) {
        button.setAttribute("aria-pressed", String(Boolean(entry.verdict) && button.dataset.verdict === entry.verdict));
      }
      if (document.activeElement !== comment) comment.value = entry.comment || "";
      const order = listed();
      find("position").textContent = `${order.indexOf(current) + 1}/${order.length}`;
    }
  }

  // ---- one case -----------------------------------------------------------------------------------------------------

  function open(row, isNew = true) {
    if (!row) return;
    if (current !== row) {
      saveComment();
      current = row;
      frame.contentWindow.location.replace(new URL(row.dataset.href, location.href));
      find("title").textContent = row.dataset.id;
      find("alone").href = row.dataset.href;
      comment.value = entryOf(row).comment || "";
    }
    const wasOpen = document.body.classList.contains("open");
    document.body.classList.add("open");
    if (isNew) {
      const address = "#" + encodeURIComponent(row.dataset.id);
      wentForward ||= !wasOpen;
      if (wasOpen) location.replace(address);
      else location.hash = address;
    }
    paint();
    row.scrollIntoView({ block: "nearest" });
  }

  /** Back to the list, where it is not beside the case. */
  function close() {
    if (isWide()) return;
    saveComment();
    document.body.classList.remove("open");
    if (wentForward) history.back();
    wentForward = false;
  }

  function move(by) {
    const order = listed();
    const place = current ? order.indexOf(current) + by : 0;
    if (order.length) open(order[Math.min(order.length - 1, Math.max(0, place))]);
  }

  function saveComment() {
    if (!current) return;
    const said = comment.value.trim();
    if (said !== (entryOf(current).comment || "")) decide(current.dataset.id, { comment: said });
  }

  window.addEventListener("hashchange", () => {
    const row = byId.get(decodeURIComponent(location.hash.slice(1)));
    if (row) open(row, false);
    else {
      document.body.classList.remove("open");
      wentForward = false;
    }
  });

  // ---- CSV ----------------------------------------------------------------------------------------------------------

  const COLUMNS = ["id", "verdict", "comment", "reviewed_at", "look_at", "model_sha256"];
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

  function csv() {
    const lines = rows.map((row) => {
      const entry = entryOf(row);
      const look = row.dataset.why || "";
      return [row.dataset.id, entry.verdict || "", entry.comment || "", entry.at || "", look, about.model];
    });
    return [COLUMNS, ...lines].map((cells) => cells.map(quoted).join(",")).join("\r\n") + "\r\n";
  }

  function parsed(text) {
    const table = [[""]];
    let isQuoted = false;
    for (let place = 0; place < text.length; place++) {
      const letter = text[place], row = table[table.length - 1];
      if (isQuoted) {
        if (letter !== '"') row[row.length - 1] += letter;
        else if (text[place + 1] === '"') { row[row.length - 1] += letter; place++; }
        else isQuoted = false;
      } else if (letter === '"') isQuoted = true;
      else if (letter === ",") row.push("");
      else if (letter === "\n") table.push([""]);
      else if (letter !== "\r") row[row.length - 1] += letter;
    }
    return table.filter((row) => row.length > 1);
  }

  function save() {
    saveComment();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff", csv()], { type: "text/csv" }));
    link.download = `review-${new Date().toISOString().slice(0, 10)}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    isDirty = false;
  }

  async function load(file) {
    const [head, ...table] = parsed((await file.text()).replace(/^\ufeff/, ""));
    const column = (name) => (head || []).indexOf(name);
    const cell = (row, name) => (column(name) < 0 ? "" : row[column(name)] || "");
    let taken = 0;
    for (const row of table) {
      const verdictOf = cell(row, "verdict") in VERDICTS ? cell(row, "verdict") : "";
      if (!byId.has(cell(row, "id")) || !(verdictOf || cell(row, "comment"))) continue;
      kept[cell(row, "id")] = { verdict: verdictOf, comment: cell(row, "comment"), at: cell(row, "reviewed_at") };
      taken += 1;
    }
    if (current) comment.value = entryOf(current).comment || "";
    store();
    paint();
    find("loaded").textContent = taken ? `${taken} taken from the file` : "nothing in the file is about these cases";
  }

  // ---- keys and buttons ---------------------------------------------------------------------------------------------

  const keys = {
    j: () => move(1), k: () => move(-1), ArrowRight: () => move(1), ArrowLeft: () => move(-1), " ": () => move(1),
    a: () => verdict("accept"), r: () => verdict("reject"), u: () => verdict(""),
    c: () => { if (current) comment.focus(); }, s: save, "/": () => search.focus(),
    Enter: () => { if (document.body.classList.contains("open")) window.open(current.dataset.href); else move(0); },
    Escape: () => { if (find("help").open) find("help").close(); else close(); },
    "?": () => { if (find("help").open) find("help").close(); else find("help").showModal(); },
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === comment || event.target === search) {
      if (event.key === "Enter" || event.key === "Escape") {
        if (event.target === comment && event.key === "Escape") comment.value = entryOf(current).comment || "";
        event.target.blur();
        event.preventDefault();
      }
      return;
    }
    const isButton = event.target.tagName === "BUTTON" || event.target.tagName === "A";
    if (isButton && (event.key === "Enter" || event.key === " ")) return;
    if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    } else if (current && event.key !== "Tab") {
      if (event.key.startsWith("Arrow") || event.key.startsWith("Page")) event.preventDefault();
      frame.contentWindow.postMessage({ key: event.key }, "*");
    }
  });
  window.addEventListener("message", (event) => {
    if (event.source !== frame.contentWindow || !event.data) return;
    if (event.data.settings) settings = event.data.settings;
    else if (event.data.ready) {
      if (settings) frame.contentWindow.postMessage({ settings }, "*");
    } else if (keys[event.data.key]) keys[event.data.key]();
  });
  window.addEventListener("beforeunload", (event) => { if (isDirty) event.preventDefault(); });
  comment.addEventListener("blur", saveComment);
  search.addEventListener("input", paint);
  for (const row of rows) {
    row.querySelector("a").addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      open(row);
    });
  }
  for (const button of document.querySelectorAll("[data-filter]")) {
    button.addEventListener("click", () => { filter = button.dataset.filter; paint(); });
  }
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.addEventListener("click", () => {
      const isPressed = button.getAttribute("aria-pressed") === "true";
      verdict(isPressed ? "" : button.dataset.verdict);
    });
  }
  const onClick = { previous: () => move(-1), next: () => move(1), close, save, keys: keys["?"], shut: keys["?"] };
  for (const [id, action] of Object.entries(onClick)) find(id).addEventListener("click", action);
  find("load").addEventListener("change", (event) => { if (event.target.files.length) load(event.target.files[0]); });
  store();
  document.body.classList.add("live");
  paint();
  const asked = byId.get(decodeURIComponent(location.hash.slice(1)));
  if (asked || isWide()) open(asked || rows[0], false);
})();
