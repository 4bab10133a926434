// The superpage map: a cell a superpage. Colour and shape say the same where a cell has room for
// both. Only cells that changed are drawn; where they are small and many, pixel by pixel.

export const STATES = [
  { letter: "W", key: "whole", label: "whole" },
  { letter: "r", key: "retained", label: "whole with parts given back" },
  { letter: "b", key: "broken", label: "broken" },
  { letter: "p", key: "promised", label: "promised" },
  { letter: ".", key: "out", label: "ballooned out" },
];

const CODES = STATES.map((state) => state.letter.charCodeAt(0));
const SHAPED_PX = 8;
const GAP_PX = 5;

// Runs of letters, as 12W3b, to the index of each superpage's state.
export function decode(superpages, runs) {
  const cells = new Uint8Array(superpages);
  let at = 0;
  for (const [, length, letter] of runs.matchAll(/(\d+)(\D)/g)) {
    const index = Math.max(CODES.indexOf(letter.charCodeAt(0)), 0);
    cells.fill(index, at, at + Number(length));
    at += Number(length);
  }
  return cells;
}

export function count(cells) {
  const counts = new Array(STATES.length).fill(0);
  for (const cell of cells) counts[cell] += 1;
  return counts;
}

export function colours() {
  const style = getComputedStyle(document.documentElement);
  return {
    cells: STATES.map((state) => style.getPropertyValue(`--${state.key}`).trim()),
    ground: style.getPropertyValue("--card").trim(),
    mark: style.getPropertyValue("--fg").trim(),
  };
}

// Draws one cell of `size` device pixels, `gap` of it left free.
function cell(context, palette, state, x, y, size, gap, ratio) {
  const side = size - gap;
  context.fillStyle = palette.cells[state];
  context.fillRect(x, y, side, side);
  if (size < SHAPED_PX * ratio) return;
  context.fillStyle = palette.ground;
  const part = Math.max(Math.round(side * 0.36), 2);
  const key = STATES[state].key;
  if (key === "retained") context.fillRect(x + side - part, y, part, part);
  if (key === "broken") {
    const middle = Math.round((side - part) / 2);
    context.fillRect(x + middle, y + middle, part, part);
  }
  if (key === "promised") {
    const edge = Math.max(Math.round(side * 0.13), 1);
    context.fillRect(x + edge, y + edge, side - 2 * edge, side - 2 * edge);
  }
  if (key === "out") {
    context.fillRect(x, y, side, side);
    const dot = Math.max(Math.round(side * 0.4), 2);
    const at = Math.round((side - dot) / 2);
    context.fillStyle = palette.cells[state];
    context.fillRect(x + at, y + at, dot, dot);
  }
}

// A colour as a pixel of ImageData: bytes in the order red, green, blue, opacity.
function ink(context, colour) {
  context.fillStyle = colour;
  const [red, green, blue] = [1, 3, 5].map((at) => Number.parseInt(context.fillStyle.slice(at, at + 2), 16));
  return new Uint32Array(new Uint8Array([red, green, blue, 255]).buffer)[0];
}

// A swatch for a legend.
export function swatch(canvas, state, palette) {
  const ratio = window.devicePixelRatio || 1;
  const size = Math.round(14 * ratio);
  canvas.width = canvas.height = size;
  canvas.style.width = canvas.style.height = "14px";
  cell(canvas.getContext("2d"), palette, state, 0, 0, size, 0, ratio);
}

export class SuperpageMap {
  constructor(canvas, place, { height, largest }) {
    this.canvas = canvas;
    this.place = place;
    this.height = height;
    this.largest = largest;
    this.cells = new Uint8Array(0);
    this.drawn = null;
    this.picked = -1;
    this.palette = colours();
    this.asked = false;
    new ResizeObserver(() => this.forget()).observe(place);
  }

  show(cells) {
    if (cells.length !== this.cells.length) this.drawn = null;
    this.cells = cells;
    this.ask();
  }

  pick(index) {
    this.picked = index;
    this.forget();
  }

  // Draw all of it again: the size or the colours have changed.
  forget() {
    this.drawn = null;
    this.ask();
  }

  recolour() {
    this.palette = colours();
    this.forget();
  }

  ask() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this.draw();
    });
  }

  layout() {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.floor(this.place.clientWidth * ratio);
    const height = this.height * ratio;
    const total = Math.max(this.cells.length, 1);
    let size = Math.max(Math.round(this.largest * ratio), 1);
    while (size > 1 && Math.ceil(total / Math.max(Math.floor(width / size), 1)) * size > height) size -= 1;
    const columns = Math.max(Math.floor(width / size), 1);
    const rows = Math.ceil(total / columns);
    const gap = size >= GAP_PX * ratio ? Math.max(Math.round(ratio), 1) : 0;
    return { ratio, size, columns, rows, gap };
  }

  draw() {
    if (this.place.clientWidth === 0) return;
    const context = this.canvas.getContext("2d");
    if (!this.drawn) {
      this.at = this.layout();
      const { ratio, size, columns, rows } = this.at;
      this.canvas.width = Math.min(columns, Math.max(this.cells.length, 1)) * size;
      this.canvas.height = rows * size;
      this.canvas.style.width = `${this.canvas.width / ratio}px`;
      this.canvas.style.height = `${this.canvas.height / ratio}px`;
      this.drawn = new Uint8Array(this.cells.length).fill(255);
      this.fresh = true;
    }
    if (this.at.size < SHAPED_PX * this.at.ratio) this.drawPixels(context);
    else this.drawCells(context);
    if (this.picked >= 0 && this.picked < this.cells.length) this.frame(context);
  }

  drawCells(context) {
    const { ratio, size, columns, gap } = this.at;
    for (let index = 0; index < this.cells.length; index += 1) {
      const state = this.cells[index];
      if (this.drawn[index] === state) continue;
      const x = (index % columns) * size;
      const y = Math.floor(index / columns) * size;
      context.clearRect(x, y, size, size);
      cell(context, this.palette, state, x, y, size, gap, ratio);
      this.drawn[index] = state;
    }
  }

  drawPixels(context) {
    const { size, columns, gap } = this.at;
    const { width, height } = this.canvas;
    if (this.image?.width !== width || this.image?.height !== height || this.fresh) {
      this.image = context.createImageData(width, height);
      this.fresh = false;
    }
    const pixels = new Uint32Array(this.image.data.buffer);
    const inks = this.palette.cells.map((colour) => ink(context, colour));
    const side = size - gap;
    for (let index = 0; index < this.cells.length; index += 1) {
      const state = this.cells[index];
      if (this.drawn[index] === state) continue;
      const left = (index % columns) * size;
      const top = Math.floor(index / columns) * size;
      for (let y = top; y < top + side; y += 1) {
        pixels.fill(inks[state], y * width + left, y * width + left + side);
      }
      this.drawn[index] = state;
    }
    context.putImageData(this.image, 0, 0);
  }

  frame(context) {
    const { ratio, size, columns } = this.at;
    const x = (this.picked % columns) * size;
    const y = Math.floor(this.picked / columns) * size;
    const least = Math.max(size, 8 * ratio);
    context.strokeStyle = this.palette.mark;
    context.lineWidth = 2 * ratio;
    context.strokeRect(x - (least - size) / 2, y - (least - size) / 2, least - this.at.gap, least - this.at.gap);
  }

  // The superpage under a pointer; -1: none.
  under(event) {
    if (!this.at) return -1;
    const { ratio, size, columns } = this.at;
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) * ratio) / size);
    const row = Math.floor(((event.clientY - box.top) * ratio) / size);
    const index = row * columns + column;
    return column >= 0 && column < columns && index >= 0 && index < this.cells.length ? index : -1;
  }
}
