// Drawing: the visible part of the lanes on one canvas, everything on the overview above it.

const AXIS = 34;
const NAMES = [
  "bg", "panel", "ink", "dim", "line", "soft", "accent", "view", "loading", "idle", "busy", "draining", "stopping", "reclaiming",
  "bad", "served", "queued", "queued-edge", "closing", "gone", "budget", "used", "on-busy", "on-idle", "on-state", "on-reclaiming", "on-served", "on-bad", "edge", "other",
  "m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7",
];
const HATCHED = {loading: "/", draining: ".", stopping: "\\", reclaiming: "-"};
const FONT = 'system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif';
let C = {}, FILL = {};

const drawing = document.getElementById("drawing"), overview = document.getElementById("overview");
const lanes = document.getElementById("lanes"), tall = document.getElementById("tall");
const view = {t0: 0, t1: LENGTH, width: 800, height: 600, gutter: 84, scale: 1, hover: null, chosen: null, band: null, whole: null};
const X = (t) => view.gutter + (t - view.t0) / (view.t1 - view.t0) * (view.width - view.gutter);
const T = (x) => view.t0 + (x - view.gutter) / (view.width - view.gutter) * (view.t1 - view.t0);

// A fill with a texture, so that no state is told by its colour alone.
function hatch(colour, ink, sign) {
  const size = 6, scale = view.scale, tile = document.createElement("canvas");
  tile.width = tile.height = size * scale;
  const g = tile.getContext("2d");
  g.scale(scale, scale);
  g.fillStyle = colour;
  g.fillRect(0, 0, size, size);
  g.strokeStyle = g.fillStyle = ink;
  g.globalAlpha = 0.42;
  g.lineWidth = 1.2;
  g.beginPath();
  if (sign === "/") for (const d of [-size, 0, size]) { g.moveTo(d, size); g.lineTo(d + size, 0); }
  else if (sign === "\\") for (const d of [-size, 0, size]) { g.moveTo(d, 0); g.lineTo(d + size, size); }
  else if (sign === "-") { g.moveTo(0, 3); g.lineTo(size, 3); }
  else { g.arc(1.5, 1.5, 1, 0, 7); g.fill(); g.beginPath(); g.arc(4.5, 4.5, 1, 0, 7); g.fill(); }
  g.stroke();
  const pattern = g.createPattern(tile, "repeat");
  pattern.setTransform(new DOMMatrix().scale(1 / scale));
  return pattern;
}

function readColours() {
  const style = getComputedStyle(document.documentElement);
  C = Object.fromEntries(NAMES.map((name) => [name, style.getPropertyValue("--" + name).trim()]));
  FILL = {...C};
  for (const [name, sign] of Object.entries(HATCHED)) FILL[name] = hatch(C[name], C.ink, sign);
  FILL.failed = hatch(C.bad, C["on-state"], "\\");
  FILL.cancelled = hatch(C.gone, C["on-state"], "/");
}

const calm = (end) => D.ends[end] === "cancelled" || D.ends[end] === "rejected";
const endFill = (end) => end <= 1 ? FILL.served : calm(end) ? FILL.cancelled : FILL.failed;
const modelFill = (model) => D.shown[model] ? C["m" + model % 8] : C.other;

function label(g, words, x, y, colour, room) {
  if (room !== undefined && room < 8) return 0;
  g.fillStyle = colour;
  let width = g.measureText(words).width;
  if (room !== undefined && width > room) {
    let keep = Math.floor(words.length * room / width) - 1;
    while (keep > 0 && g.measureText(words.slice(0, keep) + "…").width > room) keep--;
    if (keep < 2) return 0;
    words = words.slice(0, keep) + "…";
    width = g.measureText(words).width;
  }
  g.fillText(words, x, y);
  return width;
}

// --- rows ------------------------------------------------------------------------------------------------

// Calls `paint(place, x0, x1)` for what is wide enough to be seen, and `dense(x, cover, place)` once for each pixel
// in which there is more than one: so what it costs depends on the width, not on how much there is.
function eachSeen(row, paint, dense) {
  const {start, end, sum} = row, n = start.length, left = view.gutter, perPixel = T(1) - T(0);
  let i = firstAfter(end, view.t0, true);
  while (i < n && start[i] < view.t1) {
    const x0 = Math.max(left, X(start[i])), x1 = Math.min(view.width, X(end[i]));
    if (x1 - x0 >= 1.5) {
      paint(i++, x0, x1);
      continue;
    }
    const x = Math.floor(x0);
    let j = Math.max(i + 1, firstAfter(start, T(x + 1), true));
    if (j - 1 > i && end[j - 1] - start[j - 1] >= 1.5 * perPixel) j--;
    dense(x, Math.min(1, (sum[j] - sum[i]) / perPixel), i);
    i = j;
  }
}

function drawStates(g, row, y) {
  const h = row.h - 3;
  eachSeen(row, (i, x0, x1) => {
    const {r, k} = row.spans[row.ref[i]], runner = D.runners[r], name = D.states[runner.spans[k][0]];
    g.fillStyle = FILL[name];
    g.fillRect(x0, y, Math.max(1, x1 - x0 - 0.5), h);
    if (x1 - x0 > 34) {
      const words = runner.id + (x1 - x0 > 120 ? "  " + name : ""), room = x1 - x0 - 10;
      if (HATCHED[name]) {
        g.fillStyle = C[name];
        g.fillRect(x0 + 3, y + 2, Math.min(room + 4, g.measureText(words).width + 6), h - 4);
      }
      label(g, words, x0 + 6, y + h / 2 + 0.5, C["on-" + name] || C["on-state"], room);
    }
  }, (x, cover, i) => {
    const middle = firstAfter(row.end, T(x + 0.5));
    const {r, k} = row.spans[row.ref[middle < row.ref.length && row.start[middle] < T(x + 1) ? middle : i]];
    g.fillStyle = C[D.states[D.runners[r].spans[k][0]]];
    g.fillRect(x, y, 1, h);
  });
  let crossed = -100;
  for (const r of row.ends) {
    const runner = D.runners[r], x = X(runner.end[0]);
    if (x < view.gutter || x > view.width) continue;
    if (text(runner.end[2]) === "unloaded") {
      g.fillStyle = C.dim;
      if (x - X(Math.max(0, runner.load)) > 8) g.fillRect(x - 1, y, 1.5, h);
    } else if (x - crossed > 9) {
      cross(g, x, y + h / 2, 4.5);
      crossed = x;
    }
  }
}

function cross(g, x, y, size) {
  for (const [colour, width] of [[C.bg, 5], [C.bad, 2.2]]) {
    g.strokeStyle = colour;
    g.lineWidth = width;
    g.beginPath();
    g.moveTo(x - size, y - size); g.lineTo(x + size, y + size);
    g.moveTo(x + size, y - size); g.lineTo(x - size, y + size);
    g.stroke();
  }
}

function drawServed(g, row, y) {
  const h = row.h;
  g.font = "9.5px " + FONT;
  eachSeen(row, (i, x0, x1) => {
    const part = row.ref[i], request = SERVES.request[part], tail = SERVES.tail[part];
    const until = tail ? Math.max(x0, Math.min(x1, X(SERVES.end[part]))) : x1;
    g.fillStyle = endFill(Q.end[request]);
    g.fillRect(x0, y, Math.max(1, until - x0 - (x1 - x0 > 4 ? 1 : 0)), h);
    if (until - x0 > 44 && badEnd(request)) {
      g.fillStyle = calm(Q.end[request]) ? C.gone : C.bad;
      g.fillRect(x0 + 2, y + 1, Math.min(until - x0 - 4, g.measureText(idOf(request)).width + 4), h - 2);
    }
    if (until - x0 > 44) label(g, idOf(request), x0 + 4, y + h / 2 + 0.5, Q.end[request] > 1 && !calm(Q.end[request]) ? C["on-bad"] : C["on-served"], until - x0 - 8);
    if (tail && x1 > until) {
      g.fillStyle = C.closing;
      g.fillRect(until, y + h / 2 - 1.5, x1 - until, 3);
    }
  }, (x, cover) => {
    g.globalAlpha = 0.3 + 0.7 * cover;
    g.fillStyle = C.served;
    g.fillRect(x, y, 1, h);
    g.globalAlpha = 1;
  });
  g.font = "11.5px " + FONT;
  paintOdd(g, row, y);
}

function paintOdd(g, row, y) {
  eachSeen(row.odd, () => {}, (x, cover, i) => {
    const end = Q.end[SERVES.request[row.odd.ref[i]]];
    g.fillStyle = calm(end) ? C.gone : C.bad;
    g.fillRect(x, y, 1, row.h);
  });
}

function drawWaiting(g, row, y) {
  const h = Math.max(1, row.h - (row.h > 3 ? 1 : 0));
  eachSeen(row, (i, x0, x1) => {
    g.fillStyle = C.queued;
    g.fillRect(x0, y, x1 - x0, h);
    g.fillStyle = C["queued-edge"];
    g.fillRect(x0, y, Math.min(1.5, x1 - x0), h);
    if (h > 3) g.fillRect(x0, y + h - 1, x1 - x0, 1);
  }, (x, cover) => {
    g.globalAlpha = 0.35 + 0.65 * cover;
    g.fillStyle = C["queued-edge"];
    g.fillRect(x, y, 1, h);
    g.globalAlpha = 1;
  });
}

const TROUBLE = /failed|lost|breach|cooling|crowded|blocked|resumed/;

function mark(g, kind, x, y, h) {
  const own = kind.startsWith("daemon") || kind.startsWith("config");
  g.fillStyle = TROUBLE.test(kind) ? C.bad : own ? C.ink : C.dim;
  g.beginPath();
  if (TROUBLE.test(kind)) { g.moveTo(x, y + 2); g.lineTo(x + 5, y + h - 2); g.lineTo(x - 5, y + h - 2); }
  else if (kind.startsWith("claim")) { g.moveTo(x, y + 4); g.lineTo(x + 4, y + h / 2); g.lineTo(x, y + h - 4); g.lineTo(x - 4, y + h / 2); }
  else g.rect(x - 1.5, y + 2, 3, h - 4);
  g.fill();
}

function drawMarks(g, row, y, h) {
  eachSeen(row, () => {}, (x, cover, i) => mark(g, text(D.marks[row.ref[i]][2]), x, y, h));
}

function drawRefused(g, row, y, h) {
  eachSeen(row, () => {}, (x, cover, i) => {
    g.fillStyle = calm(Q.end[row.ref[i]]) ? C.gone : C.bad;
    g.fillRect(x - 1, y, 2.5, h);
  });
}

const DRAW = {
  state: drawStates, serve: drawServed, mark: (g, row, y) => drawMarks(g, row, y, row.h),
  wait: (g, row, y) => row.hidden || drawWaiting(g, row, y), refuse: (g, row, y) => drawRefused(g, row, y, row.h),
};

// --- charts ----------------------------------------------------------------------------------------------

// Calls `paint(x0, x1, i)` for the steps that are in view; of those within one pixel only for the highest.
function eachStep(times, height, paint) {
  let i = Math.max(0, firstAfter(times, view.t0) - 1);
  while (i < times.length && times[i] < view.t1) {
    let next = i + 1, best = i;
    const x0 = Math.round(Math.max(view.gutter, X(times[i])));
    const until = T(x0 + 1);
    while (next < times.length && times[next] < until) { if (height(next) > height(best)) best = next; next++; }
    const last = next - 1, x1 = Math.round(Math.min(view.width, X(next < times.length ? times[next] : LENGTH)));
    if (best !== last && x1 - x0 > 1) { paint(x0, x0 + 1, best); paint(x0 + 1, x1, last); } else paint(x0, x1, best);
    i = next;
  }
}

function drawArea(g, lane, y, h, edge, fill) {
  const scale = h / Math.max(1, lane.most);
  eachStep(lane.level.t, (i) => lane.level.v[i], (x0, x1, i) => {
    const tall = lane.level.v[i] * scale;
    if (!tall) return;
    g.fillStyle = fill;
    g.fillRect(x0, y + h - tall, x1 - x0, tall);
    g.fillStyle = edge;
    g.fillRect(x0, y + h - tall, x1 - x0, 1.2);
  });
}

function drawLine(g, level, most, y, scale, colour, dashes) {
  g.strokeStyle = colour;
  g.lineWidth = 1.4;
  g.setLineDash(dashes);
  g.beginPath();
  eachStep(level.t, (i) => level.v[i], (x0, x1, i) => {
    if (level.v[i] < 0 || level.v[i] > most) return;
    g.moveTo(x0, y - level.v[i] * scale);
    g.lineTo(x1, y - level.v[i] * scale);
  });
  g.stroke();
  g.setLineDash([]);
}

function drawMemory(g, lane, y) {
  const h = lane.h - 22, base = y + 14 + h, scale = h / lane.most;
  lane.base = base;
  lane.scale = scale;
  eachStep(lane.held.t, (i) => lane.held.total[i], (x0, x1, i) => {
    let top = base;
    for (const [runner, size] of lane.held.bands[i]) {
      const tall = size * scale, model = D.runners[runner].model;
      g.fillStyle = modelFill(model);
      g.fillRect(x0, top - tall, x1 - x0, tall);
      g.fillStyle = C.edge;
      g.fillRect(x0, top - tall, x1 - x0, 1);
      if (x1 - x0 > 60 && tall > 14) label(g, shown(D.models[model]), x0 + 6, top - tall / 2 + 0.5, C.ink, x1 - x0 - 10);
      top -= tall;
    }
  });
  g.fillStyle = C.line;
  g.fillRect(view.gutter, base, view.width - view.gutter, 1);
  drawLine(g, lane.used, lane.most, base, scale, C.used, [2, 3]);
  drawLine(g, lane.budget, lane.most, base, scale, C.budget, [7, 4]);
}

// --- everything ------------------------------------------------------------------------------------------

const STEPS_MS = [
  ...[0.001, 0.01, 0.1, 1, 10, 100].flatMap((d) => [d, 2 * d, 5 * d]),
  ...[1, 2, 5, 10, 15, 30].map((s) => s * 1e3), ...[1, 2, 5, 10, 15, 30].map((m) => m * 6e4),
  ...[1, 2, 3, 6, 12].map((h) => h * 36e5), ...[1, 2, 7, 14, 28].map((d) => d * 864e5),
];

// The round times of day in view, with how to write them.
function ticks() {
  const wanted = Math.max(2, (view.width - view.gutter) / 110), span = (view.t1 - view.t0) / 1000;
  const step = STEPS_MS.find((s) => span / s <= wanted) || STEPS_MS[STEPS_MS.length - 1];
  const digits = step >= 6e4 ? -1 : step >= 1e3 ? 0 : step >= 1 ? 3 : 6;
  const found = [];
  if (D.last < D.first) return {found, digits, step};
  D.clock.forEach(([since, at], k) => {
    const from = Math.max(view.t0, k ? since : -Infinity), to = Math.min(view.t1, k + 1 < D.clock.length ? D.clock[k + 1][0] : Infinity);
    if (to <= from) return;
    const ms = (t) => (at + t - since) / 1000, zone = new Date(ms(from)).getTimezoneOffset() * 6e4;
    for (let m = Math.ceil((ms(from) - zone) / step) * step + zone; m < ms(to); m += step) found.push({t: m * 1000 - at + since, ms: m});
  });
  return {found, digits, step};
}

function drawAxis(g) {
  g.fillStyle = C.bg;
  g.fillRect(0, 0, view.width, AXIS);
  const {found, digits, step} = ticks();
  let before = -1e9, date = "";
  g.font = "11.5px " + FONT;
  for (const {t, ms} of found) {
    const x = X(t);
    g.fillStyle = C.line;
    g.fillRect(Math.round(x), AXIS - 6, 1, view.height);
    const today = day(ms), words = step >= 864e5 ? today : clock(ms, digits);
    if (x - before < g.measureText(words).width + 14) continue;
    label(g, words, x + 4, 24, C.dim);
    if (today !== date && step < 864e5) { label(g, today, x + 4, 9, C.ink); date = today; }
    before = x;
  }
  g.fillStyle = C.line;
  g.fillRect(0, AXIS - 1, view.width, 1);
}

function drawDowns(g) {
  for (const [a, b, stopped] of D.downs) {
    const x0 = Math.max(view.gutter, X(a)), x1 = Math.min(view.width, X(b));
    if (x1 < view.gutter || x0 > view.width) continue;
    g.fillStyle = C.soft;
    g.fillRect(x0, AXIS, Math.max(1, x1 - x0), view.height);
    if (x1 - x0 > 70) label(g, stopped ? "stopped" : "died in here", x0 + 5, AXIS + 10, C.dim, x1 - x0 - 8);
  }
}

function drawLane(g, lane, y) {
  const narrow = view.gutter < 20, name = (words, dy, colour) => label(g, words, 10, y + dy, colour, (narrow ? view.width : view.gutter) - 14);
  if (lane.kind === "model") {
    g.fillStyle = C.line;
    g.fillRect(0, y + 4, view.width, 1);
    g.font = "600 13px " + FONT;
    const width = label(g, shown(lane.label), 10, y + 19, C.ink, view.width - 150);
    g.font = "11.5px " + FONT;
    label(g, lane.note, 20 + width, y + 19.5, C.dim, view.width - width - 30);
  } else if (lane.kind === "memory") {
    drawMemory(g, lane, y);
    const t = Math.min(view.t1, LENGTH) - 1, budget = valueAt(lane.budget, t);
    name(lane.label, narrow ? 6 : 22, C.ink);
    if (!narrow && budget > 0) name(bytes(budget), 37, C.dim);
    if (!narrow && budget > 0) name("budget", 51, C.dim);
  } else if (lane.kind === "queue") {
    drawArea(g, lane, y + 10, lane.h - 18, C["queued-edge"], C.queued);
    g.fillStyle = C.line;
    g.fillRect(view.gutter, y + lane.h - 8, view.width - view.gutter, 1);
    name(lane.label, narrow ? 4 : 18, C.ink);
    if (!narrow) name("at most " + lane.most, 33, C.dim);
  } else if (lane.kind === "waiting" && lane.level) {
    drawArea(g, lane, y, lane.h - 6, C["queued-edge"], C.queued);
  }
  if (["marks", "waiting", "track", "refused"].includes(lane.kind) && !narrow) name(lane.label, lane.kind === "track" ? 9 : Math.min(13, lane.h / 2), C.dim);
}

function outline(g, thing, colour, width) {
  if (!thing) return;
  const {row, place} = thing, y = row.y - lanes.scrollTop + AXIS, pad = 1.5;
  const x0 = Math.max(view.gutter - 2, X(row.start[place])), x1 = Math.min(view.width + 2, X(row.end[place]));
  if (x1 < view.gutter - 2 || x0 > view.width) return;
  g.strokeStyle = colour;
  g.lineWidth = width;
  g.strokeRect(x0 - pad, y - pad, Math.max(3, x1 - x0) + 2 * pad, Math.max(4, row.kind === "state" ? row.h - 3 : row.h) + 2 * pad);
}

function draw() {
  const g = drawing.getContext("2d"), top = lanes.scrollTop;
  g.setTransform(view.scale, 0, 0, view.scale, 0, 0);
  g.fillStyle = C.bg;
  g.fillRect(0, 0, view.width, view.height);
  g.textBaseline = "middle";
  g.textAlign = "left";
  g.font = "11.5px " + FONT;
  drawDowns(g);
  drawAxis(g);
  g.save();
  g.beginPath();
  g.rect(0, AXIS, view.width, view.height - AXIS);
  g.clip();
  const inView = (thing) => thing.y + thing.h >= top && thing.y <= top + view.height;
  for (const lane of LANES) if (inView(lane)) drawLane(g, lane, lane.y - top + AXIS);
  for (const row of ROWS) if (inView(row)) DRAW[row.kind](g, row, row.y - top + AXIS);
  outline(g, view.hover, C.ink, 1.2);
  outline(g, view.chosen, C.accent, 2.4);
  if (!Q.count && !D.runners.length) label(g, D.last < D.first ? "There is nothing to draw." : "No runner and no request in this time.", view.gutter + 10, HEIGHT + AXIS + 16, C.dim);
  if (view.band) {
    g.fillStyle = C.view;
    g.fillRect(view.band[0], AXIS, view.band[1] - view.band[0], view.height);
  }
  g.restore();
  drawOverview();
}

// All of it, drawn once for a size and a set of colours.
function drawWhole() {
  const whole = document.createElement("canvas"), g = whole.getContext("2d"), w = overview.clientWidth, h = overview.clientHeight;
  whole.width = overview.width;
  whole.height = overview.height;
  const kept = [view.t0, view.t1, view.gutter, view.width];
  Object.assign(view, {t0: 0, t1: LENGTH, gutter: 0, width: w});
  g.setTransform(view.scale, 0, 0, view.scale, 0, 0);
  g.fillStyle = C.panel;
  g.fillRect(0, 0, w, h);
  drawArea(g, LANES.find((lane) => lane.kind === "queue"), 3, h - 9, C["queued-edge"], C.queued);
  g.fillStyle = C.bad;
  for (const row of ROWS) {
    if (row.odd) eachSeen(row.odd, (i, x0, x1) => g.fillRect(x0, h - 5, Math.max(1, x1 - x0), 3), (x) => g.fillRect(x, h - 5, 1, 3));
  }
  [view.t0, view.t1, view.gutter, view.width] = kept;
  return whole;
}

function drawOverview() {
  const g = overview.getContext("2d"), w = overview.clientWidth, h = overview.clientHeight;
  g.setTransform(1, 0, 0, 1, 0, 0);
  g.drawImage(view.whole, 0, 0);
  if (view.t0 <= 0 && view.t1 >= LENGTH) return;
  const a = view.t0 / LENGTH * w, b = view.t1 / LENGTH * w;
  g.setTransform(view.scale, 0, 0, view.scale, 0, 0);
  g.fillStyle = C.view;
  g.fillRect(a, 0, Math.max(2, b - a), h);
  g.fillStyle = C.accent;
  g.fillRect(a, 0, 1.5, h);
  g.fillRect(Math.max(a + 2, b - 1.5), 0, 1.5, h);
}
