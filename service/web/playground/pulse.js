// The live strip: two scrapes of /metrics and what happened between them.

import { ask } from "./api.js";
import { $, draw, milliseconds } from "./dom.js";

const EVERY_MS = 2000;
const POINTS = 60;
const ANSWERS = /classify|explain|infer|predict|invocations/i;
const LINE = /^(\w+)(?:\{(.*)\})? (\S+)$/;

function parse(text) {
  const seen = { images: 0, views: 0, batches: 0, queue: 0, buckets: new Map() };
  for (const line of text.split("\n")) {
    const [, name, labels = "", value] = LINE.exec(line) || [];
    const number = Number(value);
    if (name === "fivecrop_stage_seconds_count" && labels.includes('stage="infer"')) seen.images += number;
    else if (name === "fivecrop_batch_views_sum") seen.views += number;
    else if (name === "fivecrop_batch_views_count") seen.batches += number;
    else if (name === "fivecrop_queue_views") seen.queue += number;
    else if (name === "fivecrop_request_seconds_bucket") {
      const [, route] = /route="([^"]*)"/.exec(labels);
      const [, limit] = /le="([^"]*)"/.exec(labels);
      const upTo = limit === "+Inf" ? Infinity : Number(limit);
      if (ANSWERS.test(route)) seen.buckets.set(upTo, (seen.buckets.get(upTo) || 0) + number);
    }
  }
  return seen;
}

/** Returns the median in seconds of what was counted between, as Prometheus interpolates it. */
export function median(before, now) {
  const counts = [...now.keys()].sort((a, b) => a - b)
    .map((limit) => [limit, now.get(limit) - (before.get(limit) || 0)]);
  const half = (counts.at(-1)?.[1] || 0) / 2;
  if (!half) return null;
  let [low, below] = [0, 0];
  for (const [limit, count] of counts) {
    if (count >= half) {
      return limit === Infinity ? low : low + ((limit - low) * (half - below)) / (count - below);
    }
    [low, below] = [limit, count];
  }
  return null;
}

function sparkline(values) {
  const most = Math.max(...values, 1e-9);
  const points = values.map((value, i) =>
    `${100 - values.length + 1 + i} ${19 - (17 * (value || 0)) / most}`);
  const line = `M${points.join("L")}`;
  return draw("svg", { viewBox: `${100 - POINTS} 0 ${POINTS} 20`, preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("path", { class: "area", d: `${line}V20H${100 - values.length + 1}Z` }),
    draw("path", { class: "line", d: line }));
}

const history = { rate: [], latency: [], queue: [], batch: [] };

function show(name, value, text) {
  const values = history[name];
  values.push(value);
  if (values.length > POINTS) values.shift();
  $(`pulse-${name}`).replaceChildren(text, sparkline(values));
}

let last = null;

async function look() {
  const now = parse(await (await ask("metrics")).text());
  now.at = performance.now();
  if (last) {
    const seconds = (now.at - last.at) / 1000;
    const rate = (now.images - last.images) / seconds;
    show("rate", rate, `${rate >= 10 ? rate.toFixed(0) : rate.toFixed(1)} images/s`);
    const latency = median(last.buckets, now.buckets);
    show("latency", latency, latency === null ? "idle" : milliseconds(latency * 1000));
    show("queue", now.queue, `${now.queue} ${now.queue === 1 ? "view" : "views"}`);
    const batches = now.batches - last.batches;
    const batch = batches ? (now.views - last.views) / batches : null;
    show("batch", batch, batch === null ? "idle" : `${batch.toFixed(1)} views`);
  }
  last = now;
}

let timer = null;

/** Starts to look, again and again while somebody sees the page. */
export function startPulse() {
  clearTimeout(timer);
  $("pulse-note").hidden = true;
  const again = async () => {
    try {
      if (document.visibilityState === "visible") await look();
    } catch (problem) {
      $("pulse-note").textContent = problem.code === "forbidden"
        ? "Live figures need a key with the scope metrics."
        : `No live figures: ${problem.title || problem.message}.`;
      $("pulse-note").hidden = false;
      if (problem.code === "forbidden" || problem.code === "unauthenticated") return;
    }
    timer = setTimeout(again, EVERY_MS);
  };
  again();
}
