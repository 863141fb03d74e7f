// What the mouse, the keys and the fingers do.

const $ = (id) => document.getElementById(id);
const tip = $("tip"), find = $("find"), found = $("found"), detail = $("detail");
const LEAST = 20;  // microseconds: closer than that there is nothing to see
let waitingToDraw = false, pointers = new Map(), grip = null;

function redraw() {
  if (waitingToDraw) return;
  waitingToDraw = true;
  requestAnimationFrame(() => { waitingToDraw = false; draw(); });
}

function element(tag, words, kind) {
  const made = document.createElement(tag);
  if (words !== undefined) made.textContent = words;
  if (kind) made.className = kind;
  return made;
}

function resize() {
  view.scale = Math.min(3, window.devicePixelRatio || 1);
  view.width = lanes.clientWidth;
  view.height = lanes.clientHeight;
  view.gutter = view.width < 640 ? 8 : 92;
  for (const [canvas, w, h] of [[drawing, view.width, view.height], [overview, overview.clientWidth, 40]]) {
    canvas.width = Math.round(w * view.scale);
    canvas.height = Math.round(h * view.scale);
  }
  drawing.style.width = view.width + "px";
  drawing.style.height = view.height + "px";
  tall.style.height = Math.max(0, HEIGHT + AXIS - view.height) + "px";
  readColours();
  view.whole = drawWhole();
  legend();
  redraw();
}

// --- where one looks -------------------------------------------------------------------------------------

function look(t0, t1) {
  const span = Math.min(LENGTH * 1.04, Math.max(LEAST, t1 - t0)), edge = LENGTH * 0.02;
  const from = Math.min(Math.max(t0, -edge), LENGTH + edge - span);
  view.t0 = from;
  view.t1 = from + span;
  redraw();
}

const showAll = () => look(-LENGTH * 0.005, LENGTH * 1.005);
const zoom = (factor, t = (view.t0 + view.t1) / 2) => look(t - (t - view.t0) * factor, t + (view.t1 - t) * factor);
const move = (part) => look(view.t0 + (view.t1 - view.t0) * part, view.t1 + (view.t1 - view.t0) * part);

function zoomTo(thing) {
  const {row, place} = thing, length = Math.max(row.end[place] - row.start[place], 1000), room = length * 0.35;
  look(Math.max(0, row.start[place]) - room, Math.min(LENGTH, row.end[place]) + room);
  reveal(row);
}

function reveal(row) {
  if (row.y < lanes.scrollTop + 20) lanes.scrollTop = row.y - 60;
  else if (row.y + row.h > lanes.scrollTop + view.height - AXIS - 20) lanes.scrollTop = row.y + row.h - view.height + AXIS + 60;
}

// --- what is there ---------------------------------------------------------------------------------------

// The thing in a row at a time, or the nearest within some pixels.
function thingIn(row, t, reach) {
  const n = row.start.length;
  if (!n) return null;
  const i = firstAfter(row.start, t) - 1;
  if (i >= 0 && row.end[i] >= t && row.end[i] > row.start[i]) return {row, place: i};
  const far = (k) => k < 0 || k >= n ? Infinity : row.start[k] > t ? row.start[k] - t : Math.max(0, t - row.end[k]);
  const best = far(i) <= far(i + 1) ? i : i + 1;
  return far(best) <= reach * (T(1) - T(0)) ? {row, place: best} : null;
}

function thingAt(x, y) {
  const down = y + lanes.scrollTop - AXIS;
  if (y < AXIS || x < view.gutter) return null;
  const row = ROWS.find((r) => down >= r.y - 0.5 && down < r.y + r.h + 1);
  return row ? thingIn(row, T(x), row.kind === "mark" || row.kind === "refuse" ? 7 : 3) : null;
}

// What a chart says of a time.
function chartAt(x, y) {
  const down = y + lanes.scrollTop - AXIS, t = T(x);
  if (y < AXIS || x < view.gutter || t < 0 || t > LENGTH) return null;
  const lane = LANES.find((l) => down >= l.y && down < l.y + l.h);
  if (!lane || !["memory", "queue", "waiting"].includes(lane.kind) || (lane.kind === "waiting" && !lane.level)) return null;
  const lines = [clock(wall(t), 3) + " · " + since(t)];
  if (lane.kind !== "memory") {
    return {title: many(valueAt(lane.level, t), "request") + " queued", note: lane.kind === "queue" ? "" : shown(D.models[lane.model]), lines, id: ""};
  }
  const i = firstAfter(lane.held.t, t) - 1, bands = i < 0 ? [] : lane.held.bands[i];
  for (const [runner, size] of [...bands].reverse()) lines.push(D.runners[runner].id + " " + shown(D.models[D.runners[runner].model]) + ": " + bytes(size));
  const budget = valueAt(lane.budget, t), used = valueAt(lane.used, t);
  lines.push((budget < 0 ? "budget unknown" : "budget " + bytes(budget)) + (used > 0 ? ", " + bytes(used) + " in use as the device reports it" : ""));
  return {title: bytes(i < 0 ? 0 : lane.held.total[i]) + " held of " + lane.label, note: "", lines, id: ""};
}

const commandFor = (id) => D.origin.command + " " + id;

function describeInto(box, told, command) {
  box.replaceChildren();
  const title = element("div", "", "title" + (told.bad ? " bad" : ""));
  title.append(element("span", told.title));
  if (told.note) title.append(" ", element("em", told.note));
  title.dir = "auto";
  box.append(title);
  for (const line of told.lines) {
    const made = element("div", line);
    made.dir = "auto";
    box.append(made);
  }
  if (command && told.id) box.append(element("code", commandFor(told.id)));
}

function hover(x, y, clientX, clientY) {
  const thing = thingAt(x, y), told = thing ? about(thing.row, thing.place) : chartAt(x, y);
  const same = thing && view.hover && thing.row === view.hover.row && thing.place === view.hover.place;
  view.hover = thing;
  drawing.classList.toggle("over", !!thing);
  tip.hidden = !told;
  if (told) {
    describeInto(tip, told, true);
    const box = tip.getBoundingClientRect();
    const left = clientX + 16 + box.width > innerWidth - 8 ? clientX - box.width - 12 : clientX + 16;
    tip.style.left = Math.max(8, left) + "px";
    tip.style.top = Math.max(8, Math.min(clientY + 16, innerHeight - box.height - 8)) + "px";
  }
  if (!same) redraw();
}

function unhover() {
  tip.hidden = true;
  view.hover = null;
  redraw();
}

function choose(thing) {
  view.chosen = thing;
  const was = detail.hidden;
  detail.hidden = !thing;
  tip.hidden = true;
  if (thing) {
    const told = about(thing.row, thing.place);
    describeInto($("detail-words"), told, false);
    $("command").textContent = told.id ? commandFor(told.id) : "";
    $("command").hidden = $("copy").hidden = !told.id;
    $("copy").textContent = "Copy";
    $("said").textContent = [told.title, told.note, ...told.lines].join(". ");
  }
  if (was !== detail.hidden) resize();
  if (thing) reveal(thing.row);
  redraw();
}

async function copy() {
  const words = $("command").textContent;
  if (!words) return;
  try {
    await navigator.clipboard.writeText(words);
  } catch {
    getSelection().selectAllChildren($("command"));
    document.execCommand("copy");
  }
  $("copy").textContent = "Copied";
  $("said").textContent = "Copied";
}

// --- going from one to the next --------------------------------------------------------------------------

const usable = () => ROWS.filter((row) => row.start.length);

function step(along) {
  const at = view.chosen;
  if (!at) return first();
  const place = Math.min(at.row.start.length - 1, Math.max(0, at.place + along));
  choose({row: at.row, place});
  keepInView(at.row, place);
}

function climb(down) {
  const at = view.chosen, rows = usable();
  if (!at) return first();
  const row = rows[Math.min(rows.length - 1, Math.max(0, rows.indexOf(at.row) + down))];
  const t = Math.min(view.t1, Math.max(view.t0, at.row.start[at.place]));
  const place = Math.min(row.start.length - 1, Math.max(0, firstAfter(row.start, t) - 1));
  choose({row, place});
  keepInView(row, place);
}

function first() {
  const row = usable().find((r) => r.kind !== "mark") || usable()[0];
  if (row) choose({row, place: Math.min(row.start.length - 1, firstAfter(row.end, Math.max(0, view.t0)))});
}

function keepInView(row, place) {
  const a = row.start[place], b = row.end[place], span = view.t1 - view.t0;
  if (b < view.t0 + span * 0.02 || a > view.t1 - span * 0.02) look((a + Math.min(b, a + span)) / 2 - span / 2, (a + Math.min(b, a + span)) / 2 + span / 2);
}

// --- finding ---------------------------------------------------------------------------------------------

function whereIs(kind, test) {
  for (const row of ROWS) {
    if (row.kind !== kind) continue;
    const place = row.ref.findIndex((ref) => test(ref, row));
    if (place >= 0) return {row, place};
  }
  return null;
}

const whereRequest = (i) => (Q.serves[i] >= 0 && whereIs("serve", (ref) => ref === Q.serves[i]))
  || (Q.waits[i] >= 0 && whereIs("wait", (ref) => ref === Q.waits[i])) || whereIs("refuse", (ref) => ref === i);
const whereRunner = (r) => whereIs("state", (ref, row) => row.spans[ref].r === r);

// At most a few of what a text may mean: [name, words, go].
function search(wanted) {
  const results = [], seq = /^[qr]?(\d+)$/i.exec(wanted);
  if (seq) {
    const n = Number(seq[1]), i = firstAfter(Q.seq, n, true);
    if (Q.seq[i] === n && !/^r/i.test(wanted)) results.push(["q" + n, shown(D.models[Q.model[i]]), () => goTo(whereRequest(i))]);
    D.runners.forEach((runner, r) => {
      if (runner.id === "r" + n && !/^q/i.test(wanted)) results.push([runner.id, shown(D.models[runner.model]), () => goTo(whereRunner(r))]);
    });
  }
  D.models.forEach((name, model) => {
    if (!name.toLowerCase().includes(wanted.toLowerCase())) return;
    const lane = LANES.find((l) => l.kind === "model" && l.model === model);
    if (lane) results.push([shown(name), lane.note, () => { lanes.scrollTop = lane.y - 4; redraw(); }]);
  });
  return results.slice(0, 20);
}

function goTo(thing) {
  if (!thing) return;
  zoomTo(thing);
  choose(thing);
}

function showFound() {
  const wanted = find.value.trim();
  const results = wanted ? search(wanted) : [];
  found.hidden = !wanted;
  found.replaceChildren(...results.map(([name, words, go]) => {
    const item = element("li"), button = element("button");
    button.type = "button";
    button.append(element("b", name), element("span", words));
    button.addEventListener("click", () => { found.hidden = true; go(); lanes.focus({preventScroll: true}); });
    item.append(button);
    return item;
  }));
  if (wanted && !results.length) found.append(element("p", "nothing of this name in this timeline"));
}

// --- hands -----------------------------------------------------------------------------------------------

const here = (event) => {
  const box = drawing.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

drawing.addEventListener("wheel", (event) => {
  event.preventDefault();
  const unit = event.deltaMode ? 30 : 1, [x] = here(event);
  tip.hidden = true;
  if (x < view.gutter && !event.shiftKey) {
    lanes.scrollTop += event.deltaY * unit;
    return;
  }
  if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) move((event.deltaX || event.deltaY) * unit / view.width);
  else zoom(Math.exp(Math.max(-240, Math.min(240, event.deltaY * unit)) * 0.0022), T(x));
}, {passive: false});

const take = ([x, y], mark, moved) => ({x, y, t0: view.t0, t1: view.t1, top: lanes.scrollTop, mark, moved});

drawing.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  pointers.set(event.pointerId, here(event));
  grip = take(here(event), event.shiftKey, false);
  lanes.focus({preventScroll: true});
});

addEventListener("pointermove", (event) => {
  const [x, y] = here(event);
  if (!grip) {
    if (event.target === drawing && event.pointerType !== "touch") hover(x, y, event.clientX, event.clientY);
    else if (!tip.hidden) unhover();
    return;
  }
  if (!pointers.has(event.pointerId)) return;
  const before = [...pointers.values()];
  pointers.set(event.pointerId, [x, y]);
  if (pointers.size === 2) return pinch(before, [...pointers.values()]);
  if (!grip.moved && Math.hypot(x - grip.x, y - grip.y) < 4) return;
  if (!grip.moved) drawing.setPointerCapture(event.pointerId);
  grip.moved = true;
  tip.hidden = true;
  drawing.classList.add("dragging");
  if (grip.mark) {
    view.band = [Math.max(view.gutter, Math.min(x, grip.x)), Math.max(x, grip.x)];
    return redraw();
  }
  const shift = (grip.x - x) / (view.width - view.gutter) * (grip.t1 - grip.t0);
  lanes.scrollTop = grip.top + grip.y - y;
  look(grip.t0 + shift, grip.t1 + shift);
});

function pinch([[a], [b]], [[c], [d]]) {
  const middle = T((a + b) / 2), factor = Math.abs(a - b) / Math.max(10, Math.abs(c - d));
  zoom(factor, middle);
  move(((a + b) - (c + d)) / 2 / (view.width - view.gutter));
  grip.moved = true;
}

function letGo(event) {
  pointers.delete(event.pointerId);
  const was = grip;
  if (!was) return;
  if (pointers.size) {  // a finger is left, and goes on from where it is
    grip = take([...pointers.values()][0], false, true);
    return;
  }
  grip = null;
  drawing.classList.remove("dragging");
  if (view.band) {
    const [a, b] = view.band.map(T);
    view.band = null;
    look(a, b);
  } else if (!was.moved && event.type === "pointerup") choose(thingAt(...here(event)));
}
addEventListener("pointerup", letGo);
addEventListener("pointercancel", letGo);
drawing.addEventListener("dblclick", (event) => {
  const thing = thingAt(...here(event));
  if (thing) zoomTo(thing); else zoom(0.4, T(here(event)[0]));
});
drawing.addEventListener("pointerleave", unhover);
lanes.addEventListener("scroll", redraw, {passive: true});

function lookAtOverview(event) {
  if (event.type === "pointerdown") overview.setPointerCapture(event.pointerId);
  if (!event.buttons) return;
  const t = event.offsetX / overview.clientWidth * LENGTH, half = (view.t1 - view.t0) / 2;
  look(t - half, t + half);
}
overview.addEventListener("pointerdown", lookAtOverview);
overview.addEventListener("pointermove", lookAtOverview);

const KEYS = {
  "+": () => zoom(0.6), "=": () => zoom(0.6), w: () => zoom(0.6), "-": () => zoom(1 / 0.6), "\u2212": () => zoom(1 / 0.6), s: () => zoom(1 / 0.6),
  a: () => move(-0.2), d: () => move(0.2), PageUp: () => move(-0.8), PageDown: () => move(0.8), Home: () => look(0, view.t1 - view.t0),
  End: () => look(LENGTH - view.t1 + view.t0, LENGTH), 0: showAll, ArrowLeft: () => step(-1), ArrowRight: () => step(1),
  ArrowUp: () => climb(-1), ArrowDown: () => climb(1), Enter: () => view.chosen && zoomTo(view.chosen), c: copy,
  Escape: () => choose(null),
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const typing = event.target === find;
  if (event.key === "Escape" && typing) { found.hidden = true; lanes.focus(); return; }
  if (typing && event.key === "Enter") { const go = found.querySelector("button"); if (go) go.click(); return; }
  if (typing && event.key === "ArrowDown") { const go = found.querySelector("button"); if (go) { go.focus(); event.preventDefault(); } return; }
  if (typing) return;
  if (found.contains(event.target) && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
    const item = event.target.closest("li"), next = event.key === "ArrowDown" ? item.nextSibling : item.previousSibling;
    (next ? next.firstChild : find).focus();
    event.preventDefault();
    return;
  }
  if (event.key === "/") { find.focus(); find.select(); event.preventDefault(); return; }
  if (event.key === "?") { $("help").showModal(); return; }
  if (event.target.tagName === "BUTTON" && (event.key === "Enter" || event.key === " ")) return;
  const does = KEYS[event.key];
  if (does && !found.contains(event.target)) { does(); event.preventDefault(); tip.hidden = true; }
});

find.addEventListener("input", showFound);
find.addEventListener("focus", showFound);
addEventListener("pointerdown", (event) => { if (!$("finder").contains(event.target)) found.hidden = true; });
$("in").addEventListener("click", () => zoom(0.5));
$("out").addEventListener("click", () => zoom(2));
$("fit").addEventListener("click", showAll);
$("ask").addEventListener("click", () => $("help").showModal());
$("copy").addEventListener("click", copy);
$("close").addEventListener("click", () => { choose(null); lanes.focus(); });
$("zoom-to").addEventListener("click", () => view.chosen && zoomTo(view.chosen));

// --- words around it -------------------------------------------------------------------------------------

function legend() {
  const swatch = (paint) => {
    const canvas = document.createElement("canvas"), scale = view.scale;
    canvas.width = 20 * scale;
    canvas.height = 11 * scale;
    canvas.style.width = "20px";
    canvas.style.height = "11px";
    const g = canvas.getContext("2d");
    g.scale(scale, scale);
    paint(g);
    return canvas;
  };
  const filled = (fill) => swatch((g) => { g.fillStyle = fill; g.fillRect(0, 0, 20, 11); });
  const dashed = (colour, dashes) => swatch((g) => {
    g.strokeStyle = colour; g.lineWidth = 1.6; g.setLineDash(dashes); g.beginPath(); g.moveTo(0, 6); g.lineTo(20, 6); g.stroke();
  });
  const waits = swatch((g) => {
    g.fillStyle = C.queued; g.fillRect(0, 0, 20, 11); g.fillStyle = C["queued-edge"]; g.fillRect(0, 0, 1.5, 11); g.fillRect(0, 10, 20, 1);
  });
  const entries = [
    ["Runner", [...D.states.map((name) => [filled(FILL[name]), name]), [swatch((g) => cross(g, 10, 5.5, 4)), "failed, lost"]]],
    ["Request", [[waits, "queued"], [filled(FILL.served), "served"], [filled(FILL.failed), "failed, timed out"],
      [filled(FILL.cancelled), "cancelled"], [swatch((g) => { g.fillStyle = C.closing; g.fillRect(0, 4, 20, 3); }), "slot not back"]]],
    ["Event", [[swatch((g) => mark(g, "daemon", 10, -1, 13)), "daemon"], [swatch((g) => mark(g, "claim", 10, -2, 15)), "claim"],
      [swatch((g) => mark(g, "model.cooling", 10, -1, 13)), "trouble"]]],
    ["Memory", [[dashed(C.budget, [7, 4]), "budget"], [dashed(C.used, [2, 3]), "in use"]]],
  ];
  $("legend").replaceChildren(...entries.flatMap(([title, items]) => items.map(([canvas, words], i) => {
    const entry = element("span");
    if (!i) entry.append(element("b", title));
    entry.append(canvas, element("span", words));
    return entry;
  })));
}

function introduce() {
  const from = wall(0), to = wall(LENGTH), same = day(from) === day(to);
  if (D.last < D.first) {
    $("about").textContent = "No event in this time.";
    return;
  }
  const when = day(from) + " " + clock(from, 0) + " – " + (same ? "" : day(to) + " ") + clock(to, 0) + " (" + lasted(D.length) + ")";
  $("about").textContent = [when, many(D.runners.length, "runner"), many(Q.count, "request"), "events " + D.first + " to " + D.last].join(" · ");
  $("about").title = D.origin.path + ", log " + D.origin.log_id + ", runnerd " + D.origin.version;
  document.title = "runnerd timeline, " + day(from) + " " + clock(from, -1);
  for (const lane of LANES) {
    if (lane.kind !== "model") continue;
    let requests = 0, bad = 0;
    for (let i = 0; i < Q.count; i++) if (Q.model[i] === lane.model) { requests++; if (badEnd(i)) bad++; }
    const loads = D.runners.filter((r) => r.model === lane.model).length;
    lane.note = many(requests, "request") + (bad ? ", " + bad.toLocaleString("en") + " not completed" : "") + ", " + many(loads, "runner");
  }
}

introduce();
showAll();
resize();
new ResizeObserver(resize).observe(lanes);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", resize);
