// The console's only script: times of the browser's zone, choices that apply at once.
"use strict";
(() => {
  const page = document.documentElement, language = page.lang;
  page.classList.add("script");

  // --- times --------------------------------------------------------------------------------------------------------------
  const relative = new Intl.RelativeTimeFormat(language, {numeric: "auto", style: "short"});
  const moment = new Intl.DateTimeFormat(language, {dateStyle: "medium", timeStyle: "medium"});
  const clock = new Intl.DateTimeFormat(language, {timeStyle: "medium"});
  const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  function ago(date) {
    const seconds = Math.round((date - Date.now()) / 1000);
    if (Math.abs(seconds) < 1) return relative.format(0, "second");
    const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size);
    return relative.format(Math.trunc(seconds / size), unit);
  }
  function showTimes(within) {
    for (const element of within.querySelectorAll("time[data-time]")) {
      const date = new Date(element.dateTime), kind = element.dataset.time;
      const text = kind === "relative" ? ago(date) : (kind === "clock" ? clock : moment).format(date);
      if (element.textContent !== text) element.textContent = text;
      element.title = moment.format(date);
    }
  }
  showTimes(document);
  setInterval(() => { if (!document.hidden) showTimes(document); }, 1000);

  // --- forms --------------------------------------------------------------------------------------------------------------
  for (const form of document.querySelectorAll("form[data-submit-on-change]")) {
    form.addEventListener("change", () => form.requestSubmit());
  }
})();
