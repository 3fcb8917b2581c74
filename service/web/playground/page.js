// The playground: files in, one request each, a list of answers and the chosen one in full.

import { ask, askJson, keepKey, readKey, readTimings } from "./api.js";
import { listenToCamera } from "./camera.js";
import { drawCard, drawFacts } from "./card.js";
import { drawBars, drawProblem, showDetail, viewSource } from "./detail.js";
import { $, make, percent } from "./dom.js";
import { Problem } from "./problems.js";
import { startPulse } from "./pulse.js";

const AT_ONCE = 4;
const THEMES = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" };
const POLICIES = {
  none: "none", hflip: "mirrored too", five_crop: "five crops", ten_crop: "ten crops",
  multi_scale: "three sizes, mirrored",
};

let server = {};
let isOpen = false; // the server and its models are known
let models = [];
let items = []; // {file, thumbnail, row, answer, problem, asked, timings, wall_ms}
let selected = null;

// ---- the models and what to ask of them ----

const chosenModel = () =>
  models.find((one) => one.name === $("model").value && String(one.version) === $("version").value);

function readOptions() {
  const options = { model: `${$("model").value}@${$("version").value}` };
  const topK = Math.max(1, Math.round(Number($("top-k").value)) || 1);
  if (topK !== 5) options.top_k = topK;
  if ($("tta").value !== "none") options.tta = $("tta").value;
  return options;
}

function showVersions() {
  const versions = models.filter((one) => one.name === $("model").value).sort((a, b) => b.version - a.version);
  const stable = versions.find((one) => one.version_labels.includes("stable")) || versions[0];
  $("version").replaceChildren(...versions.map((one) => make("option",
    { value: one.version, selected: one === stable },
    [one.version, ...one.version_labels].join(" · "))));
  // An ensemble or a cascade chooses its views itself.
  const isBundle = stable?.kind === "bundle";
  if (!isBundle) $("tta").value = "none";
  $("tta").disabled = !isBundle;
}

async function loadModels() {
  ({ models } = await askJson("v1/models"));
  const names = [...new Set(models.map((one) => one.name))];
  const before = $("model").value;
  const byDefault = models.find((one) => one.is_default)?.name;
  const wanted = names.includes(before) ? before : byDefault;
  $("model").replaceChildren(...names.map((name) => make("option", { value: name, selected: name === wanted }, name)));
  showVersions();
  $("open-card").disabled = !models.length;
}

async function showCard() {
  const model = chosenModel();
  const reference = `${model.name}@${model.version}`;
  $("card-title").textContent = `${model.name}, version ${model.version}`;
  $("card").replaceChildren(drawFacts(model));
  $("card-dialog").showModal();
  if (model.kind !== "bundle") return;
  try {
    const card = await (await ask(`v1/models/${reference}/card`)).text();
    $("card").append(...drawCard(card).filter(Boolean));
  } catch (problem) {
    $("card").append(drawProblem(problem));
  }
}

// ---- images ----

function add(files) {
  const fresh = [...files].map((file) => ({ file, thumbnail: URL.createObjectURL(file) }));
  if (!fresh.length) return;
  for (const item of fresh) {
    item.row = make("button", { type: "button", className: "row" });
    item.row.addEventListener("click", () => select(item));
    $("list").append(make("li", {}, item.row));
    drawRow(item);
  }
  items.push(...fresh);
  document.body.classList.remove("is-empty");
  $("shelf").hidden = false;
  select(fresh[0]);
  run(fresh);
}

function clear() {
  for (const item of items) URL.revokeObjectURL(item.thumbnail);
  items = [];
  $("list").replaceChildren();
  $("shelf").hidden = true;
  document.body.classList.add("is-empty");
  select(null);
  $("choose").focus();
}

function select(item) {
  selected = item;
  for (const one of items) one.row.ariaCurrent = String(one === item);
  showDetail(item, item?.model, server);
}

function drawRow(item) {
  const best = item.answer?.predictions[0];
  const state = item.problem ? make("span", { className: "row-problem" }, item.problem.title)
    : best ? drawBars(item.answer.predictions.slice(0, 3))
    : make("span", { className: "soft" }, "asking…");
  const source = item.answer ? viewSource(item.answer.views[item.centre]) : item.thumbnail;
  const picture = make("img", { className: "thumbnail", src: source, alt: "" });
  picture.addEventListener("error", () => { picture.hidden = true; }, { once: true });
  item.row.replaceChildren(picture,
    make("span", { className: "row-text" },
      make("span", { className: "row-name" }, make("span", {}, item.file.name),
        item.answer?.abstained ? make("span", { className: "tag" }, "abstained") : null),
      state));
}

async function classify(item) {
  const asked = readOptions();
  const model = chosenModel();
  item.asked = asked;
  item.centre = server.tta.find((one) => one.name === (asked.tta || "none")).centre;
  const start = performance.now();
  let found;
  try {
    if (!models.length) throw new Problem("not_ready", "no model is served");
    const response = await ask("v1/classify", { query: { ...asked, views: true }, method: "POST", body: item.file });
    found = { answer: await response.json(), timings: readTimings(response), wall_ms: performance.now() - start };
  } catch (problem) {
    found = { problem: problem instanceof Problem ? problem : new Problem("internal", problem.message) };
    if (problem.code === "unauthenticated") askForKey(problem);
    if (problem.code === "model_not_found") loadModels().catch(() => {});
  }
  if (item.asked !== asked) return; // asked anew meanwhile
  Object.assign(item, { answer: null, problem: null, model }, found);
  item.row.ariaBusy = "false";
  drawRow(item);
  if (item === selected) showDetail(item, model, server);
  const best = item.answer?.predictions[0];
  $("status").textContent = `${item.file.name}: ` +
    (best ? `${best.label}, ${percent(best.score)}${item.answer.abstained ? ", abstained" : ""}` : item.problem.title);
}

async function run(some) {
  const waiting = [...some];
  // What was answered before stays to be seen until it is answered anew.
  for (const item of some) item.row.ariaBusy = "true";
  if (some.includes(selected)) $("answer").ariaBusy = "true";
  if (!isOpen) return; // start() runs them
  const work = async () => {
    while (waiting.length) await classify(waiting.shift());
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
}

// ---- the key ----

function askForKey(problem) {
  if ($("key-dialog").open) return;
  if (problem && readKey()) $("key-reason").textContent = "The service does not know this key. It may have been revoked.";
  $("key").value = "";
  $("key-dialog").showModal();
}

async function start() {
  if (server.needs_key && !readKey()) {
    askForKey();
    return;
  }
  try {
    await loadModels();
  } catch (problem) {
    if (problem.code === "unauthenticated") {
      askForKey(problem);
      return;
    }
    $("status").textContent = problem.title;
  }
  isOpen = true;
  startPulse();
  run(items);
}

// ---- the page ----

function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = THEMES[theme];
  localStorage.setItem("fivecrop.theme", theme);
}

function listen() {
  const drop = $("drop");
  let depth = 0;
  const hover = (by) => {
    depth = Math.max(0, depth + by);
    drop.classList.toggle("is-over", depth > 0);
  };
  addEventListener("dragenter", (event) => { event.preventDefault(); hover(1); });
  addEventListener("dragleave", () => hover(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    hover(-depth);
    add(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => add(event.clipboardData.files));
  $("choose").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = "";
  });
  listenToCamera(add);

  $("options").addEventListener("submit", (event) => event.preventDefault());
  $("options").addEventListener("change", (event) => {
    if (event.target === $("model")) showVersions();
    run(items);
  });
  $("clear").addEventListener("click", clear);

  $("open-card").addEventListener("click", showCard);
  $("open-key").addEventListener("click", () => askForKey());
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keepKey($("key").value.trim());
    $("key-dialog").close();
    start();
  });
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  $("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    showTheme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
  });
}

async function showState() {
  const answer = await ask("readyz").then(() => null, (problem) => problem);
  $("state").className = `state ${answer ? "is-bad" : "is-good"}`;
  $("state").textContent = answer ? answer.title : "ready";
}

async function open() {
  showTheme(localStorage.getItem("fivecrop.theme") || "auto");
  listen();
  showState();
  server = await askJson("playground.json");
  $("open-key").hidden = !server.needs_key;
  $("tta").replaceChildren(...server.tta.map(({ name, views }) => make("option", { value: name },
    `${POLICIES[name] || name}: ${views === 1 ? "one view" : `${views} views`}`)));
  const megabytes = (server.max_body_bytes / 2 ** 20).toFixed(0);
  const formats = server.image_formats.map((name) => name.toUpperCase()).join(", ");
  $("accepts").textContent = `or paste them: ${formats}, up to ${megabytes} MB. They go to this service and nowhere else.`;
  await start();
}

open();
