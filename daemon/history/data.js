"use strict";
// What the page was given, unpacked. Times are microseconds from the beginning of the timeline.

const D = JSON.parse(document.getElementById("data").textContent);
const LENGTH = Math.max(D.length, 1);
const text = (number) => D.strings[number];

// A name as it is shown: control characters and those that change the direction of what is around them are
// replaced, and the rest cannot reach beyond itself.
const shown = (name) => "\u2068" + name.replace(/[\p{Cc}\p{Zl}\p{Zp}\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu, "\u00b7") + "\u2069";

function sums(column) {
  let total = 0;
  return Float64Array.from(column, (n) => (total += n));
}

function unpack() {
  const q = D.requests, w = D.queued, s = D.served;
  const seq = sums(q.seq), arrived = sums(q.arrived);
  const start = (part, of) => Float64Array.from(part.start, (n, i) => arrived[of[i]] + n);
  const stop = (part, from, of) => Float64Array.from(part.length, (n, i) => n < 0 ? LENGTH : from[i] + n);
  const waiting = {request: sums(w.request), row: w.row, why: w.why};
  waiting.start = start(w, waiting.request);
  waiting.end = stop(w, waiting.start, waiting.request);
  const serving = {request: sums(s.request), runner: s.runner, slot: s.slot, tail: s.tail, open: s.length.map((n) => n < 0)};
  serving.start = start(s, serving.request);
  serving.end = stop(s, serving.start, serving.request);
  serving.seq = Float64Array.from(s.seq, (n, i) => seq[serving.request[i]] + n);
  const requests = {
    count: seq.length, seq, arrived, model: q.model, end: q.end, why: q.why,
    ended: Float64Array.from(q.ended, (n, i) => n < 0 ? LENGTH : arrived[i] + n),
    last: Float64Array.from(q.last, (n, i) => seq[i] + n),
    waits: new Int32Array(seq.length).fill(-1), serves: new Int32Array(seq.length).fill(-1),
  };
  for (let i = waiting.request.length - 1; i >= 0; i--) requests.waits[waiting.request[i]] = i;
  for (let i = serving.request.length - 1; i >= 0; i--) requests.serves[serving.request[i]] = i;
  return {requests, waiting, serving};
}

const {requests: Q, waiting: WAITS, serving: SERVES} = unpack();
const LEASES = new Set(D.leases);
const badEnd = (i) => Q.end[i] > 1;
const idOf = (i) => "q" + Q.seq[i];
const runnerEnd = (r) => r.end ? r.end[0] : LENGTH;

// The first place in a sorted array whose value is more than (or, with `same`, at least) `t`.
function firstAfter(array, t, same) {
  let low = 0, high = array.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (array[middle] > t || (same && array[middle] === t)) high = middle; else low = middle + 1;
  }
  return low;
}

// --- the time of day -------------------------------------------------------------------------------------

const CLOCK_T = D.clock.map((pair) => pair[0]);

function clockAt(t) {
  return D.clock[Math.max(0, firstAfter(CLOCK_T, t) - 1)];
}

// Milliseconds since 1970, with a fraction.
function wall(t) {
  const [since, at] = clockAt(t);
  return (at + t - since) / 1000;
}

const two = (n) => String(n).padStart(2, "0");

function day(ms) {
  const d = new Date(ms);
  return d.getFullYear() + "-" + two(d.getMonth() + 1) + "-" + two(d.getDate());
}

// `digits` of the second; -1: none at all.
function clock(ms, digits) {
  const d = new Date(ms), hm = two(d.getHours()) + ":" + two(d.getMinutes());
  if (digits < 0) return hm;
  const fraction = digits > 0 ? "." + String(Math.floor(((ms % 1000) + 1000) % 1000 * 1000)).padStart(6, "0").slice(0, digits) : "";
  return hm + ":" + two(d.getSeconds()) + fraction;
}

function lasted(us) {
  if (us < 1000) return Math.round(us) + " µs";
  if (us < 1e6) return (us / 1e3).toFixed(us < 1e4 ? 1 : 0) + " ms";
  if (us < 60e6) return (us / 1e6).toFixed(us < 10e6 ? 2 : 1) + " s";
  const s = Math.round(us / 1e6), h = Math.floor(s / 3600), d = Math.floor(h / 24);
  if (h < 1) return Math.floor(s / 60) + " min " + s % 60 + " s";
  return d < 1 ? h + " h " + Math.floor(s % 3600 / 60) + " min" : d + " d " + h % 24 + " h";
}

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (Math.abs(n) >= 1024 && unit < 4) { n /= 1024; unit++; }
  return n.toFixed(unit > 2 ? 1 : 0) + " " + units[unit];
}

const many = (n, noun) => n.toLocaleString("en") + " " + noun + (n === 1 ? "" : "s");

// --- levels ----------------------------------------------------------------------------------------------

// A number over time, from flat pairs of time and value.
function level(pairs) {
  const t = new Float64Array(pairs.length / 2), v = new Float64Array(pairs.length / 2);
  for (let i = 0; i < t.length; i++) { t[i] = pairs[2 * i]; v[i] = pairs[2 * i + 1]; }
  return {t, v};
}

const valueAt = (level, t) => {
  const i = firstAfter(level.t, t) - 1;
  return i < 0 ? 0 : level.v[i];
};

// How many of some intervals there are at each time.
function counted(indexes, start, end) {
  const from = Float64Array.from(indexes, (i) => start[i]).sort();
  const to = Float64Array.from(indexes, (i) => end[i]).sort();
  const pairs = [];
  let i = 0, j = 0, n = 0;
  while (i < from.length || j < to.length) {
    const t = Math.min(i < from.length ? from[i] : Infinity, to[j]);
    while (i < from.length && from[i] === t) { n++; i++; }
    while (j < to.length && to[j] === t) { n--; j++; }
    if (t < LENGTH || n) pairs.push(t, n);
  }
  return level(pairs);
}

// A device's memory: at each time, which runners hold how much of it, as bands one upon the other.
function stack(device) {
  const changes = [];
  D.runners.forEach((runner, index) => {
    const steps = runner.held[device] || [];
    for (let i = 0; i < steps.length; i += 2) changes.push([steps[i], index, steps[i + 1]]);
  });
  changes.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const now = new Map(), t = [], bands = [], total = [];
  for (let i = 0; i < changes.length; i++) {
    const [at, runner, size] = changes[i];
    if (size) now.set(runner, size); else now.delete(runner);
    if (i + 1 < changes.length && changes[i + 1][0] === at) continue;
    t.push(at);
    bands.push([...now].sort((a, b) => a[0] - b[0]));
    total.push([...now.values()].reduce((a, b) => a + b, 0));
  }
  return {t: Float64Array.from(t), bands, total};
}
