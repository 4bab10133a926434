// The page: a list of all guests, and one of them in full.

import { Refused, follow, get, keepToken, post, token } from "./stream.js";
import { STATES, SuperpageMap, colours, count, decode, swatch } from "./map.js";
import { History, LINES, Timeline } from "./timeline.js";

const PAGE = 4096;
const SUPERPAGE = 2 * 2 ** 20;
const UNITS = { K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };
const STATE_WORDS = {
  waiting_for_ram: ["waiting for its memory", ""],
  managing: ["managed", "good"],
  cap_lifted: ["without its limit", "bad"],
  failed: ["not managed", "bad"],
};
// A forecast that came true lately is a warning, else it is a remark.
const LOW_MS = 60_000;

const $ = (id) => document.getElementById(id);
const guests = new Map();
let chosen = null;
let stopFollowing = null;

// --- words ---

function size(bytes) {
  const sign = bytes < 0 ? "−" : "";
  const value = Math.abs(bytes);
  for (const [unit, one] of [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (value >= one) return `${sign}${Number((value / one).toFixed(value / one < 100 ? 1 : 0))} ${unit}`;
  }
  return `${sign}${value} B`;
}

const pages = (number) => size(number * PAGE);
const number = (value) => value.toLocaleString("en");

// Exactly, as the program writes sizes: 512M, 1536M.
function exact(bytes) {
  for (const unit of ["T", "G", "M", "K"]) {
    if (bytes >= UNITS[unit] && bytes % UNITS[unit] === 0) return `${bytes / UNITS[unit]}${unit}`;
  }
  return String(bytes);
}

function parseSize(text) {
  const found = /^\s*(\d+(?:\.\d+)?)\s*([KMGT])?(?:i?B)?\s*$/i.exec(text);
  if (!found) return null;
  const bytes = Number(found[1]) * (found[2] ? UNITS[found[2].toUpperCase()] : 1);
  return Number.isSafeInteger(bytes) ? bytes : null;
}

function duration(ns) {
  if (ns < 1e3) return `${ns} ns`;
  if (ns < 1e6) return `${(ns / 1e3).toFixed(ns < 1e4 ? 1 : 0)} µs`;
  if (ns < 1e9) return `${(ns / 1e6).toFixed(ns < 1e7 ? 1 : 0)} ms`;
  return `${(ns / 1e9).toFixed(1)} s`;
}

function set(id, text) {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text;
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// --- the list ---

class Guest {
  constructor(name) {
    this.name = name;
    this.history = new History();
    this.cells = null;
    this.status = null;
    this.error = undefined;
    this.lowAt = -Infinity;
    this.item = make("li");
    this.button = make("button");
    this.button.type = "button";
    const top = make("span", "top");
    this.title = make("strong", "", name);
    this.word = make("small");
    top.append(this.title, this.word);
    this.place = make("span", "place");
    this.place.style.display = "block";
    const canvas = make("canvas");
    canvas.setAttribute("aria-hidden", "true");
    this.place.append(canvas);
    this.figures = make("span", "figures");
    this.button.append(top, this.place, this.figures);
    this.item.append(this.button);
    this.button.addEventListener("click", () => choose(name));
    this.map = new SuperpageMap(canvas, this.place, { height: 34, largest: 8 });
  }

  saw({ at_ms, status, error }) {
    this.error = error;
    if (status) {
      const before = this.status?.counters.low_forecasts ?? status.counters.low_forecasts;
      if (status.counters.low_forecasts > before) this.lowAt = at_ms;
      this.status = status;
      this.at = at_ms;
      this.history.add(at_ms, status);
    }
    this.list();
  }

  word_of() {
    if (this.error === null) return ["gone", ""];
    if (this.error) return ["no answer", "bad"];
    return this.status ? STATE_WORDS[this.status.state] : ["…", ""];
  }

  list() {
    const [word] = this.word_of();
    if (this.word.textContent !== word) this.word.textContent = word;
    const text = this.status
      ? `${pages(this.status.pages.total)} of ${size(this.status.max_mem_bytes)}` : "";
    if (this.figures.textContent !== text) this.figures.textContent = text;
    this.item.hidden = this.error === null;
  }
}

function listed({ guests: names, error }) {
  for (const [name, guest] of guests) {
    if (!names.includes(name)) {
      guest.item.remove();
      guests.delete(name);
    }
  }
  for (const name of names) {
    if (!guests.has(name)) {
      const guest = new Guest(name);
      guests.set(name, guest);
      get(`/api/guests/${name}/history`)
        .then(({ samples }) => guest.history.before(samples))
        .catch(() => {});
    }
    // In the order of their names.
    $("guests").append(guests.get(name).item);
  }
  set("guests-count", names.length ? `(${names.length})` : "");
  if (error) outcome("bad", `The guests cannot be listed: ${error}`);
  if (!guests.has(chosen)) choose(wanted() ?? names[0] ?? null, "replace");
  else show();
}

function fragment() {
  return new URLSearchParams(location.hash.slice(1));
}

function wanted() {
  const name = fragment().get("guest");
  return guests.has(name) ? name : null;
}

function choose(name, how = "push") {
  const same = name === chosen;
  chosen = name;
  const address = name ? `#guest=${encodeURIComponent(name)}` : location.pathname;
  if (how === "push" && location.hash !== address) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
  for (const guest of guests.values()) {
    if (guest.name === name) {
      guest.button.setAttribute("aria-current", "true");
      guest.item.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else {
      guest.button.removeAttribute("aria-current");
    }
  }
  if (!same) {
    outcome("", "");
    picked = -1;
    bigMap.picked = -1;
    set("picked", "Point at the map, or enter a number.");
    $("pick").value = "";
    touched = false;
    shownAlerts = "";
    restart();
  }
  show();
}

// --- one guest ---

const bigMap = new SuperpageMap($("map"), $("map-place"), { height: 360, largest: 18 });
const timeline = new Timeline($("timeline"), size);
let shownAlerts = "";
let picked = -1;
// Whether the wish for a target is the user's, not yet the guest's.
let touched = false;

function show() {
  const guest = guests.get(chosen);
  const there = guest && (guest.status || guest.error);
  $("guest").hidden = !there;
  $("nobody").hidden = guests.size > 0;
  document.title = there ? `${chosen} – zerosweep` : "zerosweep";
  if (!there) return;
  set("name", guest.name);
  const [word, kind] = guest.word_of();
  set("state", word);
  $("state").dataset.kind = kind;
  alerts(guest);
  if (guest.status) figures(guest);
}

function alerts(guest) {
  const { status, error } = guest;
  const all = [];
  const add = (kind, title, text) => all.push({ kind, title, text });
  if (error === null) add("warn", "It is not running any more.", "What is below was seen last.");
  else if (error) add("bad", "Its agent does not answer.", `${error}. What is below was seen last.`);
  if (status?.state === "cap_lifted") {
    add("bad", "The guest goes on without its memory limit.", status.reason ?? "No reason was given.");
  }
  if (status?.state === "failed") {
    add("bad", "Its memory is not managed.", status.reason ?? "No reason was given.");
  }
  if (status?.stalled_threads > 0) {
    add("bad", `The guest waits for memory (threads: ${status.stalled_threads}).`,
      "It holds its target and nothing in it is zero. Raise the target, or give it less to do.");
  }
  if (status?.borrowed_pages > 0) {
    add("warn", `It holds ${pages(status.borrowed_pages)} beyond its target.`, "No frame could be found.");
  }
  if (status?.state === "managing" && status.pages.short > 0) {
    const { can_touch, likely, entries, short } = status.pages;
    const soon = Date.now() - guest.lowAt < LOW_MS;
    add(soon ? "warn" : "info", soon ? "Memory runs short." : "Forecast: memory may run short.",
      `Of the ${pages(entries)} that it was promised, it can touch ${pages(can_touch)}. A sweep should find `
      + `${pages(likely)} more. ${pages(short)} are missing. Let it balloon, or raise its target.`);
  }
  // Figures in the texts change all the time. Only a new alarm is announced again.
  const titles = JSON.stringify(all.map(({ kind, title }) => [kind, title]));
  const place = $("alerts");
  if (titles !== shownAlerts) {
    shownAlerts = titles;
    place.replaceChildren(...all.map(({ kind, title }) => {
      const alert = make("div", `alert ${kind}`);
      const text = make("span");
      text.setAttribute("aria-live", "off");
      alert.append(make("strong", "", title), text);
      return alert;
    }));
  }
  all.forEach(({ text }, index) => {
    const span = place.children[index].lastChild;
    if (span.textContent !== text) span.textContent = text;
  });
}

function figures({ status, cells, history }) {
  const { pages: figures, superpages, counters, fault_latency: latency } = status;
  set("about", `pid ${status.pid} · policy ${status.policy} · on exhaustion ${status.on_exhaustion} · `
    + `return ${status.return_mode} · ${size(status.max_mem_bytes)} in all`);
  set("held", pages(figures.total));
  set("held-more", `target ${size(status.target_bytes)}`);
  set("out", pages(figures.ballooned_out));
  set("out-more", figures.owed > 0 ? `${pages(figures.owed)} still owed` : "nothing owed");
  set("whole", number(superpages.in_guest));
  set("whole-more", `${number(superpages.broken)} broken, ${number(superpages.in_cache)} in the cache`);
  set("touch", pages(figures.can_touch));
  set("touch-more", `${pages(figures.entries)} promised`);
  set("faults", `${number(counters.faults)} answered: ${number(counters.populates_2m)} with a superpage, `
    + `${number(counters.populates_4k)} with a page.`);
  for (const [id, ns] of [["p50", latency.p50_ns], ["p99", latency.p99_ns], ["longest", latency.max_ns]]) {
    set(id, duration(ns));
    // From 1 µs to 1 s.
    const share = Math.min(Math.max(Math.log10(Math.max(ns, 1)) - 3, 0) / 6, 1);
    $(`${id}-bar`).style.width = `${(share * 100).toFixed(1)}%`;
  }
  if (cells) mapOf(cells);
  else set("map-summary", "No map yet.");
  timelineOf(history);
  target(status);
}

function mapOf(cells) {
  bigMap.show(cells);
  const counts = count(cells);
  const words = STATES.map(({ label }, index) => `${number(counts[index])} ${label}`);
  set("map-summary", `${number(cells.length)} superpages of 2 MiB: ${words.join(", ")}.`);
  set("map-scale", "addresses go from left to right, then down");
  counts.forEach((value, index) => set(`legend-${index}`, number(value)));
  $("pick").max = cells.length - 1;
}

function timelineOf({ samples }) {
  if (samples.length === 0) return;
  timeline.show(samples);
  const [first, last] = [samples[0], samples.at(-1)];
  const seconds = Math.round((last.at_ms - first.at_ms) / 1000);
  set("timeline-span", seconds < 120 ? `the last ${seconds} s` : `the last ${Math.round(seconds / 60)} min`);
  LINES.forEach(({ field }, index) => set(`line-${index}`, size(last[field])));
  // For screen readers, and not at every moment.
  if (seconds % 10 === 0) {
    const words = LINES.map(({ label, field }) => `${label} from ${size(first[field])} to ${size(last[field])}`);
    set("timeline-summary", `In ${seconds} seconds: ${words.join(", ")}.`);
  }
}

function target(status) {
  const slide = $("slide");
  const step = Math.max(SUPERPAGE, 2 ** Math.ceil(Math.log2(status.max_mem_bytes / 512)));
  slide.min = step;
  slide.max = status.max_mem_bytes;
  slide.step = step;
  if (!touched) {
    slide.value = status.target_bytes;
    $("size").value = exact(status.target_bytes);
  }
  slide.setAttribute("aria-valuetext", size(Number(slide.value)));
}

// --- what a person does ---

function outcome(kind, text) {
  $("outcome").dataset.kind = kind;
  set("outcome", text);
}

function locks() {
  const open = Boolean(token());
  $("fields").disabled = !open;
  $("unlock").hidden = open;
  if (!open) {
    set("unlock-why", "This page only shows. To change a guest, enter the token that zerosweep serve printed.");
  }
}

function wrongToken(error) {
  keepToken(null);
  locks();
  set("unlock-why", error.message);
}

async function change(doing, work) {
  const name = chosen;
  $("fields").disabled = true;
  outcome("", doing);
  try {
    const text = await work(`/api/guests/${name}`);
    if (name === chosen) outcome("good", text);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) wrongToken(error);
    if (name === chosen) outcome("bad", error.message);
  } finally {
    locks();
  }
}

$("control").addEventListener("submit", (event) => {
  event.preventDefault();
  const bytes = parseSize($("size").value);
  if (bytes === null) {
    outcome("bad", `“${$("size").value}” is not a size; write 512M or 1.5G.`);
    $("size").focus();
    return;
  }
  change("Setting the target…", async (path) => {
    const status = await post(`${path}/target`, { target_bytes: bytes });
    touched = false;
    const owed = status.pages.owed > 0 ? ` Its balloon has ${pages(status.pages.owed)} to give back.` : "";
    return `The target is ${size(status.target_bytes)} now.${owed}`;
  });
});

$("slide").addEventListener("input", () => {
  touched = true;
  $("size").value = exact(Number($("slide").value));
  $("slide").setAttribute("aria-valuetext", size(Number($("slide").value)));
});

$("size").addEventListener("input", () => {
  touched = true;
  const bytes = parseSize($("size").value);
  if (bytes !== null) $("slide").value = bytes;
});

for (const button of document.querySelectorAll("[data-work]")) {
  const work = button.dataset.work;
  button.addEventListener("click", () => change(`${button.textContent} is under way…`, async (path) => {
    const done = await post(`${path}/${work}`);
    if (work !== "audit") return `${done.text}.`;
    if (!done.ok) throw new Error(`A figure differs: ${done.difference}`);
    return "Every figure agrees with the tables.";
  }));
}

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken($("token").value.trim());
  $("token").value = "";
  locks();
  restart();
});

// --- one superpage ---

function describe(index) {
  const guest = guests.get(chosen);
  if (!guest?.cells || !(index >= 0 && index < guest.cells.length)) return null;
  const from = index * SUPERPAGE;
  return `${number(index)}: ${STATES[guest.cells[index]].label}, ${size(from)} to ${size(from + SUPERPAGE)}, `
    + `gfn 0x${(index * 512).toString(16)}`;
}

async function pick(index) {
  const text = describe(index);
  if (text === null) {
    set("picked", "There is no such superpage.");
    return;
  }
  picked = index;
  bigMap.pick(index);
  set("picked", text);
  try {
    const part = await get(`/api/guests/${chosen}/map?first=${index}&count=1`);
    const live = Number.parseInt(part.live, 16);
    if (picked === index) set("picked", `${text}; ${live} of 512 pages hold a frame`);
  } catch {
    // The guest has its own line when it does not answer.
  }
}

$("pick").addEventListener("change", () => pick($("pick").valueAsNumber));
$("map").addEventListener("click", (event) => {
  const index = bigMap.under(event);
  if (index < 0) return;
  $("pick").value = index;
  pick(index);
});
$("map").addEventListener("pointermove", (event) => {
  const text = describe(bigMap.under(event));
  if (text !== null && picked < 0) set("picked", text);
});

// --- what the server says ---

function on(event, data) {
  if (event === "guests") {
    listed(data);
    return;
  }
  const guest = guests.get(data.name);
  if (!guest) return;
  if (event === "status") guest.saw(data);
  if (event === "map") {
    guest.cells = decode(data.superpages, data.runs);
    guest.map.show(guest.cells);
  }
  if (guest.name === chosen) show();
}

function state(state, error) {
  $("link").dataset.state = state;
  set("link", state === "live" ? "Live" : `No connection${error ? `: ${error.message}` : ""}`);
  if (error?.status === 401) wrongToken(error);
}

function restart() {
  stopFollowing?.();
  stopFollowing = null;
  // Nobody looks at a hidden page: the agents need not be asked for it.
  if (document.hidden) return;
  const path = chosen ? `/api/events?live=${encodeURIComponent(chosen)}` : "/api/events";
  stopFollowing = follow(path, on, state);
}

function legend(place, entries, id, draw) {
  $(place).replaceChildren(...entries.map((entry, index) => {
    const item = make("li");
    const canvas = make("canvas");
    canvas.setAttribute("aria-hidden", "true");
    const value = make("b");
    value.id = `${id}-${index}`;
    item.append(canvas, make("span", "", entry.label), value);
    draw(canvas, entry, index);
    return item;
  }));
}

function line(canvas, { key, dashes, width }) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = 26 * ratio;
  canvas.height = 10 * ratio;
  canvas.style.width = "26px";
  canvas.style.height = "10px";
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue(`--${key}`);
  context.lineWidth = width ?? 1.8;
  context.setLineDash(dashes);
  context.moveTo(0, 5);
  context.lineTo(26, 5);
  context.stroke();
}

function paint() {
  const palette = colours();
  legend("legend", STATES, "legend", (canvas, _, index) => swatch(canvas, index, palette));
  legend("lines", LINES, "line", line);
  bigMap.recolour();
  timeline.ask();
  for (const guest of guests.values()) guest.map.recolour();
  show();
}

const given = fragment();
if (given.has("token")) {
  keepToken(given.get("token"));
  given.delete("token");
  history.replaceState(null, "", given.size ? `#${given}` : location.pathname);
}
set("host", location.host);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
addEventListener("popstate", () => choose(wanted() ?? chosen, "replace"));
document.addEventListener("visibilitychange", restart);
locks();
paint();
restart();
