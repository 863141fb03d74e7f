// Where everything is drawn, from top to bottom: marks, memory, the queue, and for each model those who wait, its
// runners and their slots. A row holds what does not overlap, sorted by time.

const ROW_WAIT = 6, ROW_SLOT = 13, ROW_STATE = 18, MOST_WAITING = 72;
const LANES = [];  // {kind, y, h, label, …}
const ROWS = [];   // {kind, y, h, start, end, ref, sum, odd, …}, from top to bottom
let HEIGHT = 0;

function makeRow(kind, refs, start, end, more) {
  const row = {kind, ref: Int32Array.from(refs), ...more};
  row.start = Float64Array.from(refs, (i) => start(i));
  row.end = Float64Array.from(refs, (i) => end(i));
  row.sum = new Float64Array(refs.length + 1);
  for (let i = 0; i < refs.length; i++) row.sum[i + 1] = row.sum[i] + row.end[i] - row.start[i];
  return row;
}

// A row of only those that are not as they should be: they are drawn again, so that none is lost among the others.
function oddOf(row, isOdd) {
  const places = [];
  for (let i = 0; i < row.ref.length; i++) if (isOdd(row.ref[i])) places.push(i);
  const odd = makeRow(row.kind, places, (i) => row.start[i], (i) => row.end[i], {});
  odd.ref = odd.ref.map((i) => row.ref[i]);
  row.odd = odd;
}

function lane(kind, h, more) {
  const made = {kind, y: HEIGHT, h, ...more};
  LANES.push(made);
  HEIGHT += h;
  return made;
}

function place(row, y, h) {
  row.y = y;
  row.h = h;
  ROWS.push(row);
  return row;
}

function grouped(count, key) {
  const groups = new Map();
  for (let i = 0; i < count; i++) {
    const k = key(i);
    let group = groups.get(k);
    if (!group) groups.set(k, group = []);
    group.push(i);
  }
  return groups;
}

function layOutTop() {
  const marks = lane("marks", 26, {label: "events"});
  const refs = D.marks.map((_, i) => i);
  place(makeRow("mark", refs, (i) => D.marks[i][0], (i) => D.marks[i][0], {}), marks.y + 4, 18);
  for (const device of D.devices) {
    const held = stack(device.name), budget = level(device.budget), used = level(device.used);
    // What other programs use may be far more than the budget: it is drawn as far as there is room for it.
    const budgets = budget.v.some((n) => n > 0) ? budget.v : used.v;
    const most = [...budgets, ...held.total].reduce((a, b) => Math.max(a, b), 1) * 1.06;
    if (held.t.length) lane("memory", 88, {label: device.name, held, budget, used, most});
  }
  const all = Array.from(WAITS.start.keys());
  const queue = counted(all, WAITS.start, WAITS.end);
  lane("queue", 56, {label: "queue", level: queue, most: queue.v.reduce((a, b) => Math.max(a, b), 0)});
}

function layOutWaiting(model, parts) {
  const rows = parts.reduce((most, i) => Math.max(most, WAITS.row[i] + 1), 0);
  if (!rows) return;
  const h = Math.min(MOST_WAITING, Math.max(12, rows * ROW_WAIT)), each = h / rows;
  const count = each < 2 ? counted(parts, WAITS.start, WAITS.end) : null;
  const made = lane("waiting", h + 6, {label: "waiting", model, level: count, most: rows});
  const inRow = grouped(parts.length, (k) => WAITS.row[parts[k]]);
  for (let row = 0; row < rows; row++) {
    const refs = (inRow.get(row) || []).map((k) => parts[k]).sort((a, b) => WAITS.start[a] - WAITS.start[b]);
    place(makeRow("wait", refs, (i) => WAITS.start[i], (i) => WAITS.end[i], {hidden: !!count}), made.y + h - (row + 1) * each, each);
  }
}

function layOutTrack(model, runners, served) {
  const slots = Math.max(...runners.map((r) => D.runners[r].slots));
  const made = lane("track", ROW_STATE + slots * ROW_SLOT + 8, {label: "runner", model, slots});
  const spans = [];
  for (const r of runners) D.runners[r].spans.forEach((span, k) => spans.push({r, k, start: span[1], end: span[2]}));
  spans.sort((a, b) => a.start - b.start);
  const row = makeRow("state", spans.map((_, i) => i), (i) => spans[i].start, (i) => spans[i].end, {spans, runners});
  row.ends = runners.filter((r) => D.runners[r].end);
  place(row, made.y, ROW_STATE);
  for (let slot = 0; slot < slots; slot++) {
    const refs = runners.flatMap((r) => served.get(r * 65536 + slot) || []).sort((a, b) => SERVES.start[a] - SERVES.start[b]);
    const parts = makeRow("serve", refs, (i) => SERVES.start[i], (i) => SERVES.end[i] + SERVES.tail[i], {});
    oddOf(parts, (i) => badEnd(SERVES.request[i]));
    place(parts, made.y + ROW_STATE + 2 + slot * ROW_SLOT, ROW_SLOT - 2);
  }
}

// Requests that ended without ever being queued or served.
function layOutRefused(model, refused) {
  if (!refused.length) return;
  const made = lane("refused", 16, {label: "refused", model});
  place(makeRow("refuse", refused, (i) => Q.arrived[i], (i) => Q.arrived[i], {}), made.y + 2, 12);
}

function layOut() {
  layOutTop();
  const waits = grouped(WAITS.start.length, (i) => Q.model[WAITS.request[i]]);
  const served = grouped(SERVES.start.length, (i) => SERVES.runner[i] * 65536 + SERVES.slot[i]);
  const refused = grouped(Q.count, (i) => Q.waits[i] < 0 && Q.serves[i] < 0 && Q.end[i] ? Q.model[i] : -1);
  const runners = grouped(D.runners.length, (r) => D.runners[r].model);
  D.models.forEach((name, model) => {
    if (!D.shown[model]) return;
    lane("model", 30, {label: name, model});
    layOutWaiting(model, waits.get(model) || []);
    const mine = runners.get(model) || [];
    const tracks = grouped(mine.length, (k) => D.runners[mine[k]].track);
    for (const track of [...tracks.keys()].sort((a, b) => a - b)) layOutTrack(model, tracks.get(track).map((k) => mine[k]), served);
    layOutRefused(model, refused.get(model) || []);
  });
  HEIGHT += 12;
}

layOut();

// --- what each thing says --------------------------------------------------------------------------------

const STATE_WORDS = {idle: "ready, idle", busy: "ready, busy"};
const between = (a, b, open) => clock(wall(a), 3) + (open ? " and on" : " – " + clock(wall(b), 3)) + ", " + lasted(b - a);
const since = (t) => "+" + lasted(t) + " from the beginning";

// {title, note, lines, bad, id, start, end}: what there is to say of a thing in a row.
function about(row, place) {
  return ABOUT[row.kind](row.ref[place], row);
}

const ABOUT = {
  mark(i) {
    const [t, seq, kind, words] = D.marks[i];
    return {title: text(words), note: text(kind), lines: [clock(wall(t), 3) + " · " + since(t), "event " + seq], id: "", start: t, end: t};
  },
  state(i, row) {
    const {r, k} = row.spans[i], runner = D.runners[r], [state, start, end, seq, words] = runner.spans[k];
    const first = start <= 0 && runner.load < 0, open = end >= LENGTH && !runner.end;
    const lines = [(first ? "since before the beginning; " : "") + between(start, end, open), since(Math.max(0, start)) + " · event " + seq];
    if (words) lines.unshift(text(words));
    for (const mark of runner.marks) if (mark[0] >= start && mark[0] <= end) lines.push(text(mark[3]) + " (event " + mark[1] + ")");
    if (k === runner.spans.length - 1 && runner.end) lines.push(text(runner.end[3]) + " (event " + runner.end[1] + ")");
    const name = D.states[state];
    return {
      title: runner.id + " " + (STATE_WORDS[name] || name), note: shown(D.models[runner.model]) + (runner.options ? ", " + text(runner.options) : ""),
      lines, id: runner.id, start, end, bad: runner.end && text(runner.end[2]) !== "unloaded" && k === runner.spans.length - 1,
    };
  },
  wait(i) {
    return aboutRequest(WAITS.request[i], "queued" + (WAITS.why[i] ? " (" + text(WAITS.why[i]).replace(/_/g, " ") + ")" : ""), WAITS.start[i], WAITS.end[i]);
  },
  serve(i) {
    const runner = D.runners[SERVES.runner[i]].id;
    const made = aboutRequest(SERVES.request[i], (LEASES.has(SERVES.request[i]) ? "holds a lease of " : "served by ") + runner + ", slot " + (SERVES.slot[i] + 1) + " (event " + SERVES.seq[i] + ")", SERVES.start[i], SERVES.end[i]);
    if (SERVES.tail[i] > 0) made.lines.splice(3, 0, "its slot was held for " + lasted(SERVES.tail[i]) + " more");
    return made;
  },
  refuse(i) {
    return aboutRequest(i, "", Q.arrived[i], Q.arrived[i]);
  },
};

function aboutRequest(i, part, start, end) {
  const name = D.ends[Q.end[i]].replace(/_/g, " ");
  const lines = ["arrived " + clock(wall(Q.arrived[i]), 3) + " · " + (Q.arrived[i] < 0 ? "before the beginning" : since(Q.arrived[i])) + " · event " + Q.seq[i]];
  if (part) lines.push(part, between(start, end, end >= LENGTH && !Q.end[i]));
  if (Q.end[i]) {
    const how = Q.why[i] ? text(Q.why[i]) : name;
    lines.push(how + (Q.arrived[i] < Q.ended[i] ? ", " + lasted(Q.ended[i] - Q.arrived[i]) + " after it arrived" : "") + " · event " + Q.last[i]);
  } else lines.push("not ended here");
  return {title: idOf(i) + (name ? " " + name : ""), note: shown(D.models[Q.model[i]]), lines, id: idOf(i), start, end, bad: badEnd(i)};
}
