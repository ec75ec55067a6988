// The script of the operators' pages: a form that continues by itself, all boxes at once.
"use strict";
(() => {
  async function replaced(id, answer) {
    if (!answer.ok) throw new Error(String(answer.status));
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(id);
    const old = document.getElementById(id);
    if (fresh && old) old.replaceWith(document.adoptNode(fresh));
    return fresh;
  }

  // --- a form that continues: what is sent twice is done once, so a lost answer is asked for again
  async function proceed() {
    let tries = 0;
    for (let form; (form = document.querySelector("form[data-continue]"));) {
      try {
        await replaced(form.dataset.continue, await fetch(form.action, {method: "POST", body: new URLSearchParams(new FormData(form))}));
        tries = 0;
      } catch {
        if (++tries > 5) { form.querySelector("button").classList.remove("no-script"); return; }
        await new Promise((resolve) => setTimeout(resolve, 1000 * tries));
      }
    }
  }
  proceed();

  // --- boxes and secrets
  for (const all of document.querySelectorAll("input[data-pick-all]")) {
    all.addEventListener("change", () => {
      for (const box of document.querySelectorAll(`input[name^="${all.dataset.pickAll}"]`)) box.checked = all.checked;
    });
  }
  for (const field of document.querySelectorAll("input[data-select]")) field.addEventListener("focus", () => field.select());
})();
