// The player on the page of one session: a live view that stays at the live edge, or a finished file.
"use strict";
(() => {
  // What is folded open stays so when a part of the page is fetched again.
  const folds = new Map();
  addEventListener("click", (event) => {
    const fold = event.target.closest && event.target.closest("summary");
    if (fold && fold.parentElement.id) folds.set(fold.parentElement.id, !fold.parentElement.open);
  });
  new MutationObserver(() => {
    for (const [id, open] of folds) {
      const fold = document.getElementById(id);
      if (fold) fold.open = open;
    }
  }).observe(document.getElementById("content"), {childList: true});

  const panel = document.getElementById("player");
  if (!panel) return;
  const heading = panel.querySelector("h2"), says = panel.querySelector(".player-says"), words = panel.dataset;
  const BEHIND_S = 3, EDGE_S = 0.7, KEPT_S = 30, AGAIN_MS = 1500;
  let media = null, stop = new AbortController(), again = 0;

  function close() {
    clearTimeout(again);
    stop.abort();
    stop = new AbortController();
    if (media) {
      media.removeAttribute("src");
      media.load();
      media.remove();
    }
    media = null;
  }

  function begin(name, sound) {
    close();
    panel.hidden = false;
    heading.textContent = name;
    says.textContent = words.waits;
    media = document.createElement(sound ? "audio" : "video");
    Object.assign(media, {controls: true, playsInline: true});
    says.before(media);
    return media;
  }

  // Why there is nothing to play, as the answer says.
  async function reason(answer) {
    const body = await answer.json().catch(() => ({}));
    return body.Message || words.failed;
  }

  const once = (target, name) => new Promise((done) => target.addEventListener(name, done, {once: true}));

  // --- a live view: appended by hand, because a player of its own accord buffers seconds of a slow stream -------------------
  function keepUp(player, buffer) {
    const {buffered} = buffer;
    if (!buffered.length) return true;
    const edge = buffered.end(buffered.length - 1), begin = buffered.start(0);
    if (player.currentTime < begin || (!player.paused && edge - player.currentTime > BEHIND_S)) {
      player.currentTime = Math.max(begin, edge - EDGE_S);
    }
    if (!buffer.updating && player.currentTime - begin > 2 * KEPT_S) buffer.remove(begin, player.currentTime - KEPT_S);
    return edge - player.currentTime < KEPT_S;
  }

  async function stream(player, address, signal) {
    const answer = await fetch(address, {signal});
    if (!answer.ok) return {again: answer.status === 503, message: await reason(answer)};
    const type = answer.headers.get("content-type"), silent = type.startsWith("audio/");
    const Source = window.ManagedMediaSource || window.MediaSource;
    if (!Source || !Source.isTypeSupported(type)) {
      stop.abort();
      return {again: false, message: words.failed};
    }
    const source = new Source(), bytes = answer.body.getReader();
    player.disableRemotePlayback = true;
    player.src = URL.createObjectURL(source);
    await once(source, "sourceopen");
    URL.revokeObjectURL(player.src);
    const buffer = source.addSourceBuffer(type);
    player.classList.toggle("sound-only", silent);
    says.textContent = silent && player.localName === "video" ? words.sound : words.playing;
    player.play().catch(() => {});
    for (;;) {
      const {done, value} = await bytes.read();
      if (done) return {again: true, message: words.waits};
      buffer.appendBuffer(value);
      await once(buffer, "updateend");
      if (!keepUp(player, buffer)) {
        // Paused for long: the view is given back, and another one begins when the player goes on.
        stop.abort();
        await once(player, "play");
        return {again: true, message: words.waits};
      }
      if (buffer.updating) await once(buffer, "updateend");
    }
  }

  function isOffered(address) {
    return [...document.querySelectorAll("a[data-watch]")].some((link) => link.href === address);
  }

  async function watch(address, name, mode) {
    const player = begin(name, mode === "00"), {signal} = stop;
    let end = {again: true, message: words.waits};
    try {
      end = await stream(player, address, signal);
    } catch (error) {
      if (signal.aborted && player !== media) return;
    }
    if (player !== media) return;
    // Between two segments there is nothing to see for a moment.
    const next = () => {
      if (player !== media) return;
      if (isOffered(address)) watch(address, name, mode);
      else says.textContent = words.ended;
    };
    says.textContent = end.message;
    if (end.again) again = setTimeout(next, AGAIN_MS);
  }

  // --- a finished file --------------------------------------------------------------------------------------------------------
  function play(address, name, mode, at) {
    const player = begin(name, mode === "00");
    player.addEventListener("loadedmetadata", () => {
      if (at) player.currentTime = at;
      player.classList.toggle("sound-only", player.videoWidth === 0);
      says.textContent = "";
    });
    player.addEventListener("canplay", () => player.play().catch(() => {}), {once: true});
    player.addEventListener("error", async () => {
      if (player !== media) return;
      // The link of a file ends after some minutes; the next one plays on from here.
      if (player.currentTime > at) { play(address, name, mode, player.currentTime); return; }
      const answer = await fetch(address, {redirect: "manual"});
      says.textContent = answer.type === "opaqueredirect" ? words.failed : await reason(answer);
    });
    player.src = address;
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-watch], a[data-play]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    if ("watch" in link.dataset) watch(link.href, link.dataset.name, link.dataset.mode);
    else play(link.href, link.dataset.name, link.dataset.mode, 0);
    panel.querySelector("button").focus();
  });
  panel.querySelector("button").addEventListener("click", () => { close(); panel.hidden = true; });
})();
