// The model card: what is known of the model that is chosen.

import { make, percent } from "./dom.js";

function facts(entries) {
  return make("dl", { className: "facts" }, ...entries.filter(([, value]) => value !== null)
    .map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value))));
}

/** Returns what the service tells of a model. */
export function drawFacts(model) {
  const { decision } = model;
  return facts([
    ["Kind", model.kind],
    ["Accuracy", model.top1 === null ? "not measured" : `${percent(model.top1)} top-1, measured through this service's path`],
    ["Classes", String(model.classes)],
    ["Input", `${model.input_width} × ${model.input_height} RGB`],
    ["Abstains", decision ? `below ${percent(decision.abstain_below)}` +
      (decision.coverage === null ? "" : `; above, ${percent(decision.coverage)} are answered, ${percent(decision.accuracy)} of them rightly`) : "never"],
    ["Runs", `${model.variant} on ${model.provider}`],
    ["Labels", model.version_labels.join(", ") || null],
    ["Members", model.members.join(", ") || null],
    ["Digest", make("code", {}, model.digest.slice(0, 16))],
  ]);
}
