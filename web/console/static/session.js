// The player on the page of one session: a live view that stays at the live edge, or a finished file.
"use strict";
(() => {
  const panel = document.getElementById("player");
  if (!panel) return;
  const heading = panel.querySelector("h2"), says = panel.querySelector(".player-says"), words = panel.dataset;
  const BEHIND_S = 3, EDGE_S = 0.7, AGAIN_MS = 1500;
  let media = null, again = 0, shown = 0;

  function close() {
    clearTimeout(again);
    shown++;
    if (media) {
      media.removeAttribute("src");
      media.load();
      media.remove();
    }
    media = null;
  }

  // Why there is nothing to play: the answer that the player got, read again.
  async function refusal(address) {
    const stop = new AbortController();
    try {
      const answer = await fetch(address, {signal: stop.signal, redirect: "manual"});
      if (answer.ok || answer.type === "opaqueredirect") return {status: 200, message: ""};
      const body = await answer.json().catch(() => ({}));
      return {status: answer.status, message: body.Message || ""};
    } catch {
      return {status: 0, message: ""};
    } finally {
      stop.abort();
    }
  }

  function linkOf(address, kind) {
    return [...document.querySelectorAll(`a[data-${kind}]`)].find((link) => link.href === address);
  }

  function open(address, name, kind, mode, at) {
    close();
    const mine = shown, live = kind === "watch";
    panel.hidden = false;
    heading.textContent = name;
    says.textContent = words.waits;
    media = document.createElement(mode === "00" ? "audio" : "video");
    const player = media;
    Object.assign(player, {controls: true, playsInline: true});
    const next = async () => {
      const {status, message} = await refusal(address);
      if (mine !== shown) return;
      // Between two segments, or on a busy node, there is nothing to see for a moment.
      if (live && (status === 200 || status === 503 || status === 0) && linkOf(address, kind)) {
        says.textContent = message || words.waits;
        again = setTimeout(() => { if (mine === shown) open(address, name, kind, mode, 0); }, AGAIN_MS);
      } else {
        says.textContent = message || (live ? words.ended : words.failed);
      }
    };
    player.addEventListener("error", () => {
      if (mine !== shown) return;
      // The link of a file ends after some minutes; the next one plays on from here.
      if (!live && player.currentTime > 0) open(address, name, kind, mode, player.currentTime);
      else next();
    });
    player.addEventListener("ended", () => { if (mine === shown && live) next(); });
    player.addEventListener("loadedmetadata", () => {
      if (at) player.currentTime = at;
      const silent = player.videoWidth === 0;
      player.classList.toggle("sound-only", silent);
      says.textContent = !live ? "" : silent && mode !== "00" ? words.sound : words.live;
    });
    player.addEventListener("progress", () => {
      const {buffered} = player;
      if (!live || player.paused || !buffered.length) return;
      const edge = buffered.end(buffered.length - 1);
      if (edge - player.currentTime > BEHIND_S) player.currentTime = edge - EDGE_S;
    });
    // `autoplay` would wait until the browser expects no further pause, which it never does of a live stream.
    player.addEventListener("canplay", () => player.play().catch(() => {}), {once: true});
    player.src = address;
    panel.append(player);
    player.after(says);
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-watch], a[data-play]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    open(link.href, link.dataset.name, "watch" in link.dataset ? "watch" : "play", link.dataset.mode, 0);
    panel.querySelector("button").focus();
  });
  panel.querySelector("button").addEventListener("click", () => { close(); panel.hidden = true; });
})();
