// The model card: what the service tells of a model, and the card that lies in its bundle.

import { make, percent } from "./dom.js";

const INLINE = /\*\*(.+?)\*\*|`(.+?)`/g;

/** Returns a line of Markdown as nodes: bold and code. */
function inline(text) {
  const nodes = [];
  let end = 0;
  for (const found of text.matchAll(INLINE)) {
    nodes.push(text.slice(end, found.index), found[1] ? make("strong", {}, found[1]) : make("code", {}, found[2]));
    end = found.index + found[0].length;
  }
  return [...nodes, text.slice(end)];
}

function table(lines) {
  const cells = lines.map((line) => line.slice(1, -1).split("|").map((cell) => cell.trim()));
  const [head, , ...rows] = cells;
  const body = make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, ...inline(cell))))));
  const titles = head.some(Boolean)
    ? [make("thead", {}, make("tr", {}, ...head.map((cell) => make("th", { scope: "col" }, cell))))] : [];
  return make("div", { className: "table", tabIndex: 0 }, make("table", {}, ...titles, body));
}

/** Returns what a card says; of Markdown, what cards are written in. */
export function drawCard(markdown) {
  const blocks = markdown.trim().split(/\n{2,}/).map((block) => block.split("\n"));
  return blocks.map((lines) => {
    const [first] = lines;
    const heading = /^(#+) (.*)/.exec(first);
    if (heading) return heading[1] === "#" ? null : make("h3", {}, heading[2]);
    if (first.startsWith("|")) return table(lines);
    if (/^[*-] /.test(first)) return make("ul", {}, ...lines.map((line) => make("li", {}, ...inline(line.slice(2)))));
    const picture = /^!\[(.*)\]\((.*)\)$/.exec(first);
    if (picture) return make("p", { className: "soft" }, `Drawn in the bundle: ${picture[2]}`);
    return make("p", {}, ...inline(lines.join(" ")));
  });
}

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
