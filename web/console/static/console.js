// The console's only script: times of the browser's zone, live updates, saved views, keys. Every page works without it.
"use strict";
(() => {
  const page = document.documentElement, language = page.lang;
  page.classList.add("script");
  const made = (name, values = {}, ...inside) => {
    const element = Object.assign(document.createElement(name), values);
    element.append(...inside);
    return element;
  };

  // --- times --------------------------------------------------------------------------------------------------------------
  const relative = new Intl.RelativeTimeFormat(language, {numeric: "auto", style: "short"});
  const moment = new Intl.DateTimeFormat(language, {dateStyle: "medium", timeStyle: "medium"});
  const clock = new Intl.DateTimeFormat(language, {timeStyle: "medium", hour12: false});
  const hour = new Intl.DateTimeFormat(language, {hour: "2-digit", minute: "2-digit", hour12: false});
  const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  function ago(date) {
    const seconds = Math.round((date - Date.now()) / 1000);
    if (Math.abs(seconds) < 1) return relative.format(0, "second");
    const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size);
    return relative.format(Math.trunc(seconds / size), unit);
  }
  function span(ms) {
    const s = Math.max(0, Math.floor(ms / 1000)), two = (n) => String(n).padStart(2, "0");
    const minutes = Math.floor(s / 60) % 60, hours = Math.floor(s / 3600);
    return hours ? `${hours}:${two(minutes)}:${two(s % 60)}` : `${minutes}:${two(s % 60)}`;
  }
  function show(element, text) { if (element.textContent !== text) element.textContent = text; }
  function showTimes(within) {
    for (const element of within.querySelectorAll("time[data-time]")) {
      const date = new Date(element.dateTime), kind = element.dataset.time;
      show(element, kind === "relative" ? ago(date) : (kind === "clock" ? clock : moment).format(date));
      element.title = moment.format(date);
    }
    for (const element of within.querySelectorAll("[data-since]")) show(element, span(Date.now() - element.dataset.since));
    for (const element of within.querySelectorAll("text[data-hour]")) show(element, hour.format(Number(element.dataset.hour)));
  }
  showTimes(document);
  setInterval(() => { if (!document.hidden) showTimes(document); }, 1000);

  // --- forms --------------------------------------------------------------------------------------------------------------
  for (const form of document.querySelectorAll("form[data-submit-on-change]")) {
    form.addEventListener("change", () => form.requestSubmit());
  }
  for (const form of document.querySelectorAll("form[data-filters]")) {
    // The address is the view: it has only what was chosen.
    form.addEventListener("submit", () => {
      for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
    });
    addEventListener("pageshow", () => { for (const field of form.elements) field.disabled = false; });
  }
  for (const button of document.querySelectorAll("button[data-confirm]")) {
    button.addEventListener("click", (event) => { if (!confirm(button.dataset.confirm)) event.preventDefault(); });
  }

  // --- live updates -------------------------------------------------------------------------------------------------------
  const liveUrl = document.body.dataset.liveUrl, button = document.getElementById("live");
  const parts = new Map([...document.querySelectorAll("[data-live]")].map((part) => [part.id, part.outerHTML]));
  let source = null, last = "", paused = false, retry = 0, fetching = false, again = false;

  async function refresh() {
    if (fetching) { again = true; return; }
    fetching = true;
    try {
      const answer = await fetch(location.href, {headers: {accept: "text/html"}});
      if (answer.redirected) { location.reload(); return; }
      if (answer.ok) swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch { mark("lost"); }
    setTimeout(() => { fetching = false; if (again) { again = false; refresh(); } }, 1000);
  }
  function swap(fresh) {
    for (const part of document.querySelectorAll("[data-live], tbody[data-rows]")) {
      const next = fresh.getElementById(part.id);
      if (!next || next.outerHTML === parts.get(part.id) || part.contains(document.activeElement)) continue;
      parts.set(part.id, next.outerHTML);
      const taken = document.importNode(next, true);
      showTimes(taken);
      part.replaceWith(taken);
    }
    empty();
  }
  function wants(kind, tasks) {
    return [...document.querySelectorAll(`[data-live~="${kind}"]`)].some((part) =>
      !tasks || !part.dataset.task || tasks.includes(part.dataset.task));
  }
  function row({id, html}) {
    const rows = document.querySelector("tbody[data-rows]");
    if (!rows) return;
    const known = document.getElementById(`s-${id}`), draft = document.createElement("template");
    draft.innerHTML = html;
    const fresh = draft.content.firstElementChild;
    if (fresh) { showTimes(fresh); fresh.classList.add("changed"); }
    if (known) {
      const focused = known.contains(document.activeElement);
      if (fresh) known.replaceWith(fresh); else known.remove();
      if (fresh && focused) fresh.querySelector("a").focus();
    } else if (fresh && !("older" in rows.dataset)) {
      const after = [...rows.rows].find((other) => other.id < fresh.id);
      if (after || rows.rows.length < Number(rows.dataset.rows)) rows.insertBefore(fresh, after ?? null);
      while (rows.rows.length > Number(rows.dataset.rows)) rows.lastElementChild.remove();
    }
    empty();
  }
  function empty() {
    const rows = document.querySelector("tbody[data-rows]"), none = document.getElementById("none");
    if (rows && none) none.hidden = rows.rows.length > 0;
  }
  function mark(state) {
    button.classList.toggle("lost", state === "lost");
    button.setAttribute("aria-pressed", String(state === "paused"));
    show(button.querySelector("span"), button.dataset[`${state}Text`]);
    button.title = state === "paused" ? button.dataset.resumeTitle : button.dataset.pauseTitle;
  }
  function connect() {
    clearTimeout(retry);
    if (source || paused || document.hidden) return;
    const address = new URL(liveUrl, location.href);
    if (last) address.searchParams.set("after", last);
    source = new EventSource(address);
    const on = (name, act) => source.addEventListener(name, (event) => {
      last = event.lastEventId || last;
      mark(name === "lost" ? "lost" : "live");
      act(event.data ? JSON.parse(event.data) : null);
    });
    source.addEventListener("open", () => mark("live"));
    on("row", row);
    on("change", (tasks) => { if (wants("change", tasks)) refresh(); });
    on("tick", () => { if (wants("tick")) refresh(); });
    on("reload", refresh);
    on("lost", () => {});
    source.addEventListener("error", () => {
      mark("lost");
      disconnect();
      retry = setTimeout(() => { refresh(); connect(); }, 3000);
    });
  }
  function disconnect() {
    if (source) source.close();
    source = null;
  }
  function pause() {
    paused = !paused;
    mark(paused ? "paused" : "live");
    if (paused) disconnect(); else connect();
  }
  if (liveUrl && button) {
    button.addEventListener("click", pause);
    document.addEventListener("visibilitychange", () => document.hidden ? disconnect() : connect());
    addEventListener("pagehide", disconnect);
    addEventListener("pageshow", connect);
    connect();
  }

  // --- saved views --------------------------------------------------------------------------------------------------------
  const views = document.getElementById("views"), STORED = "recorder.views";
  const stored = () => { try { return JSON.parse(localStorage.getItem(STORED)) ?? []; } catch { return []; } };
  function keep(list) { localStorage.setItem(STORED, JSON.stringify(list)); drawViews(); }
  function drawViews() {
    const list = stored(), texts = views.dataset, here = location.search;
    const links = list.map(({name, query}, n) => made("span", {className: "view"},
      made("a", {href: `/console/sessions${query}`, textContent: name, ariaCurrent: query === here ? "page" : null}),
      made("button", {type: "button", textContent: "×", ariaLabel: texts.remove.replace("{name}", name),
        onclick: () => keep(list.filter((_, other) => other !== n))})));
    const title = list.length ? [made("span", {className: "label", textContent: texts.title})] : [];
    const saving = "chosen" in texts && !list.some(({query}) => query === here) ? [saver(list, texts, here)] : [];
    views.replaceChildren(...title, ...links, ...saving);
    views.hidden = !views.children.length;
  }
  function saver(list, texts, query) {
    const name = made("input", {placeholder: texts.name, ariaLabel: texts.name, required: true, maxLength: 40});
    return made("form", {className: "saver", onsubmit: (event) => {
      event.preventDefault();
      keep([...list, {name: name.value, query}]);
    }}, name, made("button", {className: "quiet", textContent: texts.save}));
  }
  if (views) drawViews();

  // --- keys ---------------------------------------------------------------------------------------------------------------
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    if (event.key === "/") document.querySelector(".filters input")?.focus();
    else if (event.key === "p" && button) pause();
    else if (event.key === "j" || event.key === "k") {
      const links = [...document.querySelectorAll(".row-link")], at = links.indexOf(document.activeElement);
      links[event.key === "j" ? at + 1 : Math.max(at - 1, 0)]?.focus();
    } else return;
    event.preventDefault();
  });
})();
