// The answer for one image: what the network saw, its predictions, where the time went.

import { ask } from "./api.js";
import { $, make, milliseconds, percent } from "./dom.js";
import { Problem } from "./problems.js";
import { drawSnippets } from "./snippets.js";

// How the evidence is shown stays the same from one image to the next.
const evidence = { isShown: false, method: "auto", opacity: 0.7 };

export const viewSource = (png) => `data:image/png;base64,${png}`;

/** Returns what a problem says, and what to do. */
export function drawProblem(problem) {
  return make("div", { className: "problem", role: "alert" },
    make("h3", {}, problem.title),
    make("p", {}, `${problem.message[0].toUpperCase()}${problem.message.slice(1)}. ${problem.advice}`),
    make("p", { className: "soft" }, make("code", {}, problem.code),
      problem.requestId ? ` · request ${problem.requestId}` : ""));
}

/** Returns the bars of some predictions; with `choose`, each is a button. */
export function drawBars(predictions, choose) {
  const bars = predictions.map((one) => {
    const fill = make("span", { className: "fill" });
    fill.style.width = `${one.score * 100}%`;
    const parts = [make("span", { className: "label" }, one.label),
      make("span", { className: "score" }, percent(one.score)),
      make("span", { className: "track" }, fill)];
    if (!choose) return make("li", { className: "prediction" }, ...parts);
    const button = make("button", { type: "button", className: "prediction", ariaPressed: "false" }, ...parts);
    button.addEventListener("click", () => choose(one, button));
    return make("li", {}, button);
  });
  return make("ol", { className: "predictions" }, ...bars);
}

function drawVerdict({ predictions: [best], abstained, decision, group, members }) {
  const notes = [];
  if (abstained) {
    notes.push(make("p", { className: "abstained" },
      make("strong", {}, "Abstained. "),
      `The best score is under ${percent(decision.abstain_below)}, below which this model should not be acted on.`,
      group ? ` Taken together it is sure of ${group.label} (${percent(group.score)}).` : ""));
  } else if (decision?.accuracy) {
    notes.push(make("p", { className: "soft" },
      `Calibrated. Answers like this one, above ${percent(decision.abstain_below)}, were right ` +
      `${percent(decision.accuracy)} of the time on validation images.`));
  }
  if (members) {
    const said = members.map((one) => `${one.model}@${one.version} says ${one.label} (${percent(one.score)})`);
    notes.push(make("p", { className: "soft" }, `${said.join("; ")}.`));
  }
  return [make("h2", { className: "best" }, best.label, make("span", {}, percent(best.score))), ...notes];
}

/** Returns the figure: the views as the network saw them, and the evidence over the centre one. */
function drawView(item, model) {
  const { answer, file, centre } = item;
  const view = make("img", { className: "view", decoding: "sync", src: viewSource(answer.views[centre]), alt: `${file.name}, as the network saw it` });
  const overlay = make("img", { className: "overlay", alt: "", hidden: true });
  const stage = make("div", { className: "stage" }, view, overlay);
  const isSmall = model.input_width < 128;
  stage.classList.toggle("is-pixels", isSmall);
  const { width, height, format } = answer.image;
  const count = answer.views.length;
  const caption = `What the network sees: ${model.input_width} × ${model.input_height} pixels of ` +
    `${width} × ${height} ${format.toUpperCase()}, upright${count > 1 ? `, in ${count} views` : ""}.`;
  const views = count > 1 ? make("div", { className: "views", role: "group", ariaLabel: "Views" },
    ...answer.views.map((png, i) => {
      const button = make("button", { type: "button", ariaPressed: String(i === centre), title: `View ${i + 1}` },
        make("img", { src: viewSource(png), alt: `View ${i + 1} of ${count}` }));
      button.addEventListener("click", () => {
        for (const one of views.children) one.ariaPressed = String(one === button);
        view.src = viewSource(png);
        overlay.classList.toggle("is-elsewhere", i !== centre);
      });
      return button;
    })) : null;
  const figure = make("figure", {}, stage, views, make("figcaption", { className: "soft" }, caption));
  return { figure, overlay };
}

const METHODS = { auto: "Automatic", cam: "Class activation map", occlusion: "Covering places, one by one" };

/** Returns the controls of the evidence, and how to show it for a class. */
function drawEvidence(item, model, overlay) {
  const note = make("p", { className: "soft evidence-note", role: "status" });
  const toggle = make("input", { type: "checkbox", id: "evidence", checked: evidence.isShown });
  const slider = make("input", { type: "range", id: "opacity", min: 0, max: 100, value: evidence.opacity * 100 });
  const method = make("select", { id: "method", ariaLabel: "How it is found" },
    ...Object.entries(METHODS).map(([name, about]) => make("option", { value: name, selected: name === evidence.method }, about)));
  const more = make("div", { className: "evidence-more" },
    make("label", {}, make("span", {}, "Opacity"), slider), make("label", {}, make("span", {}, "By"), method));
  let [index, label] = [item.answer.predictions[0].index, item.answer.predictions[0].label];
  let running = null;

  async function show() {
    running?.abort();
    more.hidden = overlay.hidden = true;
    note.replaceChildren();
    if (!evidence.isShown) return;
    more.hidden = false;
    running = new AbortController();
    note.textContent = "Looking for the evidence…";
    try {
      const query = { model: item.asked.model, index };
      if (evidence.method !== "auto") query.method = evidence.method;
      const response = await ask("v1/explain", {
        query, method: "POST", body: item.file, signal: running.signal, headers: { Accept: "image/png" } });
      URL.revokeObjectURL(overlay.src);
      overlay.src = URL.createObjectURL(await response.blob());
      await overlay.decode();
      overlay.alt = `Evidence for ${label}`;
      overlay.hidden = false;
      note.textContent = `Bright where the evidence for “${label}” lies, grey where there is none.`;
    } catch (problem) {
      if (problem.name === "AbortError") return;
      const told = problem instanceof Problem ? problem : new Problem("internal", problem.message);
      note.replaceChildren(make("strong", {}, told.title), `: ${told.message}.`);
    }
  }

  const fade = () => { overlay.style.opacity = evidence.opacity; };
  toggle.addEventListener("change", () => { evidence.isShown = toggle.checked; show(); });
  slider.addEventListener("input", () => { evidence.opacity = slider.value / 100; fade(); });
  method.addEventListener("change", () => { evidence.method = method.value; show(); });
  fade();
  show();
  const controls = make("div", { className: "evidence" },
    make("label", { className: "switch" }, toggle, make("span", {}, "Show the evidence")), more, note);
  const choose = (one) => {
    [index, label] = [one.index, one.label];
    evidence.isShown = toggle.checked = true;
    show();
  };
  return { controls, choose };
}

const STAGES = {
  decode: "read, resize and crop the image",
  queue: "wait for a place in a batch",
  infer: "run the network",
  other: "the rest of the service",
  "round trip": "to the service and back, with the pictures",
};

function drawTimings({ timings, wall_ms: wall, answer }) {
  const { decode = 0, queue = 0, infer = 0, total = 0 } = timings;
  const parts = { decode, queue, infer, other: Math.max(0, total - decode - queue - infer), "round trip": Math.max(0, wall - total) };
  const bar = make("div", { className: "timing-bar", ariaHidden: "true" });
  const rows = Object.entries(parts).map(([name, value]) => {
    const colour = `stage-${name.replace(" ", "-")}`;
    const piece = make("span", { className: colour });
    piece.style.flexGrow = value;
    bar.append(piece);
    return make("div", { title: STAGES[name] },
      make("dt", {}, make("i", { className: colour, ariaHidden: "true" }), name),
      make("dd", {}, milliseconds(value)));
  });
  return make("section", { className: "block" },
    make("div", { className: "block-head" }, make("h3", {}, "Where the time went"),
      make("span", { className: "soft" }, `${milliseconds(wall)}, in a batch of ${answer.batch_views} ${answer.batch_views === 1 ? "view" : "views"}`)),
    bar, make("dl", { className: "timings" }, ...rows));
}

/** Shows an image's answer, problem or wait in the panel of the page. */
export function showDetail(item, model, server) {
  const panel = $("answer");
  panel.hidden = !item;
  panel.ariaBusy = String(item?.row.ariaBusy === "true");
  if (!item) return;
  if (item.problem) {
    panel.replaceChildren(make("h2", { className: "name" }, item.file.name), drawProblem(item.problem));
    return;
  }
  if (!item.answer) {
    panel.replaceChildren(make("p", { className: "waiting soft" }, `Asking about ${item.file.name}…`));
    return;
  }
  const { views: _, ...json } = item.answer;
  const { figure, overlay } = drawView(item, model);
  const parts = [...drawVerdict(item.answer)];
  if (model.kind === "bundle") {
    const { controls, choose } = drawEvidence(item, model, overlay);
    const bars = drawBars(item.answer.predictions, (one, button) => {
      for (const other of bars.querySelectorAll("button")) other.ariaPressed = String(other === button);
      choose(one);
    });
    parts.push(bars, controls);
  } else {
    parts.push(drawBars(item.answer.predictions));
  }
  panel.replaceChildren(
    make("div", { className: "answer-top" }, figure, make("div", { className: "verdict" }, ...parts)),
    drawTimings(item),
    drawSnippets(item.file.name, item.asked, server),
    make("details", { className: "block" }, make("summary", {}, "The answer as JSON"),
      make("pre", { tabIndex: 0, ariaLabel: "JSON" }, JSON.stringify(json, null, 2))));
}
