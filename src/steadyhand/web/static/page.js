// The clocks of a running job, times in the zone of the browser, a transcript that stays at its end, selected rows.
(() => {
  "use strict";
  let heardAt = Date.now();

  function duration(seconds) {
    const whole = Math.max(0, Math.floor(seconds));
    if (whole < 60) return `${whole} s`;
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
    return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  }

  function tick() {
    for (const element of document.querySelectorAll("[data-since]")) {
      element.textContent = duration((Date.now() - Date.parse(element.dataset.since)) / 1000);
    }
    for (const element of document.querySelectorAll("[data-idle]")) {
      element.textContent = duration((Date.now() - heardAt) / 1000);
    }
  }

  // Only the time that somebody points at is told in the zone of the browser: a transcript has thousands.
  for (const name of ["pointerover", "focusin"]) {
    document.addEventListener(name, ({ target }) => {
      const time = target.closest?.("time[datetime]") ?? target.querySelector?.(":scope > time[datetime]");
      if (time) time.title = new Date(time.getAttribute("datetime")).toLocaleString();
    });
  }

  // A page that is at its end stays there until somebody scrolls up. Its height changes by itself as well: a part that
  // comes into sight is seldom as high as it was taken for. The layout is asked for once a frame, and not for each event.
  const atEnd = () => window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 80;
  let follows = false;
  let lastY = 0;
  let isFrameAsked = false;
  document.addEventListener("scroll", () => {
    follows = atEnd() || (follows && window.scrollY >= lastY);
    lastY = window.scrollY;
  }, { passive: true });
  new ResizeObserver(() => { lastY = window.scrollY; }).observe(document.body); // a lower page is not somebody's doing
  document.addEventListener("htmx:sse:before:message", ({ detail }) => {
    if (detail.message.event) return;
    heardAt = Date.now();
    beginPart();
    if (isFrameAsked) return;
    isFrameAsked = true;
    follows ||= atEnd();
    requestAnimationFrame(() => {
      isFrameAsked = false;
      if (!follows) return;
      leaveOutOldest();
      scrollToEnd();
      requestAnimationFrame(scrollToEnd); // once what has come into sight has its height
    });
  });
  function scrollToEnd() {
    if (!follows) return;
    window.scrollTo(0, document.documentElement.scrollHeight);
    lastY = window.scrollY;
  }
  // New events are added to the last part of the transcript (page.css). An item never moves to another part.
  function beginPart() {
    const last = document.getElementById("last-part"); // by its id: any other search looks at the whole transcript
    if (!last || last.childElementCount < Number(last.parentElement.dataset.partEvents)) return;
    const next = last.cloneNode(false);
    last.removeAttribute("id");
    last.after(next);
  }
  // A tab that stays open keeps the newest parts; what came before is a link away, as on a page that is opened anew.
  // Nothing is taken from somebody who reads further up or whose focus is in it.
  function leaveOutOldest() {
    const events = document.getElementById("events");
    const oldest = events?.firstElementChild;
    const isOver = () => events.childElementCount > Number(events.dataset.maxParts);
    if (!oldest || !isOver()) return;
    while (isOver() && !events.firstElementChild.contains(document.activeElement)) events.firstElementChild.remove();
    if (events.firstElementChild === oldest) return;
    const earlier = document.getElementById("earlier");
    const first = events.querySelector(".item");
    earlier.querySelector("a").search = `?before=${first.id.slice(1)}`;
    earlier.hidden = false;
  }
  document.addEventListener("htmx:after:swap", showSelected);

  // A form that somebody fills in is not replaced, nor are the rows of a list while some are selected.
  const selected = () => document.querySelectorAll('#list input[name="job"]:checked');
  const isHeld = ({ id }) =>
    id === "list" ? selected().length > 0 : id === "head-slot" && !!document.querySelector("#head-slot details[open]");
  let isBehind = false; // a change was not shown
  for (const name of ["htmx:before:request", "htmx:before:swap"]) { // the second for a request that was on its way
    document.addEventListener(name, (event) => {
      if (isHeld(event.target)) { isBehind = true; event.preventDefault(); }
    });
  }
  function catchUp() {
    const held = [...document.querySelectorAll("#list, #head-slot")].some(isHeld);
    if (isBehind && !held) { isBehind = false; document.getElementById("stream")?.dispatchEvent(new Event("changed")); }
  }
  document.addEventListener("toggle", catchUp, true);

  function showSelected() {
    const list = document.getElementById("list");
    const count = list && document.querySelector("[data-selected]");
    if (!count) return; // a transcript, which is not searched after each of its events
    const all = document.querySelector("[data-select-all]");
    all.hidden = false;
    const boxes = document.querySelectorAll('#list input[name="job"]').length;
    all.querySelector("input").checked = boxes > 0 && selected().length === boxes;
    count.textContent = selected().length ? `${selected().length} selected; the list waits` : "";
  }
  document.addEventListener("change", ({ target }) => {
    if (target.closest("[data-select-all]")) {
      for (const box of document.querySelectorAll('#list input[name="job"]')) box.checked = target.checked;
    }
    if (target.closest("#list")) showSelected();
    catchUp();
  });
  // A click on a line's number in a diff begins a remark on that line in the message for the next turn.
  const remarks = document.getElementById("remarks-text");
  document.addEventListener("click", ({ target }) => {
    const number = remarks && target.closest(".sheet .no");
    if (!number?.textContent) return;
    const where = `${number.closest(".sheet").dataset.path}:${number.textContent}`;
    const removed = number.closest(".l-removed") ? " (removed line)" : "";
    const text = remarks.value.trimEnd();
    remarks.value = `${text}${text ? "\n" : ""}${where}${removed}: `;
    remarks.focus();
    remarks.scrollIntoView({ block: "center" });
  });

  showSelected();
  setInterval(tick, 1000);
})();
