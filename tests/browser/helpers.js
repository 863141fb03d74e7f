// What the tests ask of the timeline's page, beside what it has itself.

const boxOf = (element) => { const {left, top, right, bottom} = element.getBoundingClientRect(); return [left, top, right, bottom]; };

// Where something of a kind is, in the window, once it has been brought into view.
function placeOf(kind) {
  const row = ROWS.find((r) => r.kind === kind && r.start.length);
  const place = row.start.findIndex((t, i) => row.end[i] - t > 1e6 || kind === "mark");
  zoomTo({row, place});
  draw();
  const [left, top] = boxOf(drawing);
  return [X((row.start[place] + row.end[place]) / 2) + left, row.y + row.h / 2 - lanes.scrollTop + AXIS + top];
}

function chartPlace(kind) {
  const lane = LANES.find((l) => l.kind === kind), [left, top] = boxOf(drawing);
  return [left + 500, top + AXIS + lane.y + lane.h / 2];
}

function coloursDrawn() {
  const data = drawing.getContext("2d").getImageData(0, 0, drawing.width, drawing.height).data, seen = new Set();
  for (let i = 0; i < data.length; i += 4) seen.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]);
  return seen.size;
}

// How well the first colour of each pair can be read upon the second: WCAG's contrast.
function contrasts(pairs) {
  const part = (c, i) => parseInt(c.slice(i, i + 2), 16) / 255;
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => 0.2126 * linear(part(c, 1)) + 0.7152 * linear(part(c, 3)) + 0.0722 * linear(part(c, 5));
  return pairs.map(([a, b]) => {
    const [x, y] = [light(C[a]), light(C[b])].sort((m, n) => n - m);
    return (x + 0.05) / (y + 0.05);
  });
}

const outside = () => [...document.querySelectorAll("header button, header input")].filter((e) => {
  const [left, , right] = boxOf(e);
  return left < 0 || right > innerWidth || left === right;
}).map((e) => e.id);

const queueAt = (times) => times.map((t) => valueAt(LANES.find((l) => l.kind === "queue").level, t));

const heldAt = (device, times) => times.map((t) => {
  const held = LANES.find((l) => l.label === device).held, i = firstAfter(held.t, t) - 1;
  return i < 0 ? 0 : held.total[i];
});

function chosenIsInView() {
  const {row, place} = view.chosen, inTime = row.end[place] >= view.t0 && row.start[place] <= view.t1;
  return inTime && row.y + row.h > lanes.scrollTop && row.y < lanes.scrollTop + view.height;
}

function focusIsSeen() {
  const at = document.activeElement;
  return at === document.body || getComputedStyle(at).outlineStyle !== "none";
}

const nameless = () => [...document.querySelectorAll("button, input, main, aside")]
  .filter((e) => !e.ariaLabel && !e.textContent.trim()).map((e) => e.id);

function chooseEverything() {
  for (const row of ROWS) for (let place = 0; place < row.start.length; place++) choose({row, place});
  choose(null);
}

function chooseWhatWasThereBefore() {
  choose({row: ROWS.find((r) => r.kind === "state" && D.runners[r.spans[0].r].load < 0), place: 0});
}

// How often one drawing calls the canvas.
function callsOfDraw() {
  const proto = CanvasRenderingContext2D.prototype, kept = {}, count = {};
  for (const name of ["fillRect", "fillText", "lineTo", "measureText"]) {
    kept[name] = proto[name];
    count[name] = 0;
    proto[name] = function (...given) { count[name]++; return kept[name].apply(this, given); };
  }
  draw();
  Object.assign(proto, kept);
  return count;
}
