// Lines over time. Each has its colour, its dashes, and its name at its end.

export const LINES = [
  { key: "target", label: "target", dashes: [6, 6], field: "target_bytes", width: 2 },
  { key: "total", label: "held", dashes: [], field: "total_bytes", width: 2.8 },
  { key: "populated", label: "populated", dashes: [], field: "populated_bytes" },
  { key: "cache", label: "cache", dashes: [2, 3], field: "cache_bytes" },
  { key: "entries", label: "promised", dashes: [8, 3, 2, 3], field: "entries_bytes" },
];

const KEEP_MS = 600_000;
const STEP_MS = 500;
// A longer silence is a gap in the lines.
const GAP_MS = 20_000;
const MARGIN = { top: 10, right: 74, bottom: 22, left: 58 };
const MIB = 2 ** 20;

export class History {
  constructor() {
    this.samples = [];
    this.pid = 0;
  }

  // What the server remembers, before what is here.
  before(samples) {
    const first = this.samples[0]?.at_ms ?? Infinity;
    this.samples = samples.filter((sample) => sample.at_ms < first).concat(this.samples);
  }

  add(at_ms, status) {
    if (this.pid && this.pid !== status.pid) this.samples = [];
    this.pid = status.pid;
    const last = this.samples.at(-1);
    if (last && at_ms - last.at_ms < STEP_MS) return false;
    const bytes = (pages) => pages * 4096;
    const { total, populated, cache, entries } = status.pages;
    this.samples.push({
      at_ms,
      total_bytes: bytes(total),
      populated_bytes: bytes(populated),
      cache_bytes: bytes(cache),
      entries_bytes: bytes(entries),
      target_bytes: status.target_bytes,
    });
    while (this.samples[0].at_ms < at_ms - KEEP_MS) this.samples.shift();
    return true;
  }
}

export class Timeline {
  constructor(canvas, size) {
    this.canvas = canvas;
    this.size = size;
    this.samples = [];
    this.asked = false;
    new ResizeObserver(() => this.ask()).observe(canvas);
  }

  show(samples) {
    this.samples = samples;
    this.ask();
  }

  ask() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this.draw();
    });
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (width === 0 || this.samples.length === 0) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const colour = (key) => style.getPropertyValue(`--${key}`).trim();
    const end = this.samples.at(-1).at_ms;
    const begin = Math.min(this.samples[0].at_ms, end - 30_000);
    let top = 0;
    for (const sample of this.samples) {
      for (const line of LINES) top = Math.max(top, sample[line.field]);
    }
    const step = niceStep(top / 4);
    top = Math.ceil((top * 1.02) / step) * step;
    const x = (at) => MARGIN.left + ((at - begin) / (end - begin)) * (width - MARGIN.left - MARGIN.right);
    const y = (bytes) => height - MARGIN.bottom - (bytes / top) * (height - MARGIN.top - MARGIN.bottom);
    context.font = "12px system-ui, sans-serif";
    this.axes(context, { x, y, begin, end, top, step, width, height, colour });
    const ends = [];
    // The target last: what is held lies on it most of the time.
    for (const line of LINES.toReversed()) {
      context.strokeStyle = colour(line.key);
      context.lineWidth = line.width ?? 1.8;
      context.setLineDash(line.dashes);
      context.lineJoin = "round";
      context.beginPath();
      let last = -Infinity;
      for (const sample of this.samples) {
        const point = [x(sample.at_ms), y(sample[line.field])];
        if (sample.at_ms - last > GAP_MS) context.moveTo(...point);
        else context.lineTo(...point);
        last = sample.at_ms;
      }
      context.stroke();
      ends.push({ line, y: y(this.samples.at(-1)[line.field]) });
    }
    context.setLineDash([]);
    this.names(context, ends, width, height, colour);
  }

  axes(context, { x, y, begin, end, top, step, width, height, colour }) {
    context.lineWidth = 1;
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (let bytes = 0; bytes <= top; bytes += step) {
      context.strokeStyle = colour("rule");
      context.beginPath();
      context.moveTo(MARGIN.left, Math.round(y(bytes)) + 0.5);
      context.lineTo(width - MARGIN.right, Math.round(y(bytes)) + 0.5);
      context.stroke();
      context.fillStyle = colour("dim");
      context.fillText(this.size(bytes), MARGIN.left - 7, y(bytes));
    }
    context.textBaseline = "alphabetic";
    const seconds = (end - begin) / 1000;
    const every = [5, 10, 30, 60, 120, 300].find((span) => seconds / span <= 6) ?? 600;
    for (let back = 0; back <= seconds; back += every) {
      context.textAlign = back === 0 ? "right" : "center";
      const label = back === 0 ? "now" : every < 60 ? `−${back} s` : `−${back / 60} min`;
      context.fillText(label, x(end - back * 1000) + (back === 0 ? 10 : 0), height - 5);
    }
  }

  // The lines' names at their ends, none over another.
  names(context, ends, width, height, colour) {
    ends.sort((one, other) => one.y - other.y);
    const gap = 14;
    ends.forEach((end, index) => {
      if (index > 0) end.y = Math.max(end.y, ends[index - 1].y + gap);
    });
    let limit = height - MARGIN.bottom + 4;
    for (const end of ends.toReversed()) {
      end.y = Math.min(end.y, limit);
      limit = end.y - gap;
    }
    context.textAlign = "left";
    context.textBaseline = "middle";
    for (const { line, y } of ends) {
      context.fillStyle = colour(line.key);
      context.fillText(line.label, width - MARGIN.right + 7, y);
    }
  }
}

function niceStep(bytes) {
  let step = 16 * MIB;
  while (step < bytes) step *= 2;
  return step;
}
