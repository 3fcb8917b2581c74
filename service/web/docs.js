// Draws openapi.json. No library, nothing from another origin; whatever
// comes from the server is put in as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Text in which `code` is set as code.
function prose(text) {
  return text.split("`").map((part, i) => (i % 2 ? make("code", {}, part) : part));
}

function rows(entries) {
  return make("dl", {}, ...entries.map(([term, note, about]) =>
    make("div", {},
      make("dt", {}, make("code", {}, term), make("span", { className: "soft" }, note)),
      make("dd", {}, ...about))));
}

// ---- schemas ----

function nameOf(schema) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return make("a", { href: `#schema-${name}` }, name);
  }
  const parts = schema.oneOf || schema.anyOf;
  if (parts) {
    const nodes = parts.flatMap((part, i) => (i ? [" or ", nameOf(part)] : [nameOf(part)]));
    return make("span", {}, ...nodes);
  }
  if (schema.type === "array") return make("span", {}, "list of ", nameOf(schema.items));
  if (schema.properties) {
    const keys = Object.entries(schema.properties);
    const nodes = keys.flatMap(([key, value]) => [`${key}: `, nameOf(value)]);
    return make("span", {}, "{ ", ...nodes, " }");
  }
  if (schema.contentEncoding) return make("span", {}, schema.contentEncoding);
  if (schema.contentMediaType) return make("span", {}, "file");
  return make("span", {}, schema.const !== undefined ? JSON.stringify(schema.const) : schema.type);
}

function limitsOf(schema) {
  const limits = [];
  if (schema.enum) limits.push(schema.enum.join(", "));
  if (schema.minimum !== undefined) limits.push(`from ${schema.minimum}`);
  if (schema.exclusiveMinimum !== undefined) limits.push(`above ${schema.exclusiveMinimum}`);
  if (schema.maximum !== undefined) limits.push(`to ${schema.maximum}`);
  if (schema.maxItems !== undefined) limits.push(`at most ${schema.maxItems}`);
  if (schema.default !== undefined) limits.push(`default ${schema.default}`);
  return limits.join("; ");
}

function drawSchema(name, schema) {
  const fields = Object.entries(schema.properties || {}).map(([field, value]) =>
    [field, nameOf(value), [value.description || "", " ",
      make("span", { className: "soft" }, limitsOf(value))]]);
  const body = fields.length ? rows(fields) : make("p", {}, (schema.enum || []).join(", "));
  return make("details", { id: `schema-${name}` },
    make("summary", {}, make("code", {}, name),
      make("span", { className: "about" }, ...prose((schema.description || "").split("\n")[0]))),
    make("div", { className: "body" }, body));
}

// ---- operations ----

function example(path, method) {
  const url = new URL(path.slice(1), document.baseURI).href.replaceAll("%7B", "{").replaceAll("%7D", "}");
  if (method === "put") return `curl -T photo.jpg ${url}`;
  if (method === "post") {
    return [`curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' ${url}`,
      `curl -F image=@one.jpg -F image=@two.jpg '${url}?top_k=3'`].join("\n");
  }
  return `curl ${url}`;
}

function drawParameters(operation) {
  if (!operation.parameters) return [];
  return [make("h3", {}, "Parameters"), rows(operation.parameters.map((one) =>
    [one.name, make("span", {}, `${one.in}, `, nameOf(one.schema)),
      [one.description, " ", make("span", { className: "soft" }, limitsOf(one.schema))]]))];
}

function drawBody(operation) {
  if (!operation.requestBody) return [];
  const content = Object.entries(operation.requestBody.content);
  return [make("h3", {}, "Body"), rows(content.map(([type, { schema }]) =>
    [type, "", [nameOf(schema)]]))];
}

function drawResponses(operation) {
  const responses = Object.entries(operation.responses).map(([status, response]) => {
    const schemas = Object.entries(response.content || {});
    return [status, make("span", {}, ...schemas.map(([, { schema }]) => nameOf(schema))),
      prose(response.description)];
  });
  return [make("h3", {}, "Answers"), rows(responses)];
}

function drawOperation(path, method, operation) {
  return make("details", { id: operation.operationId },
    make("summary", {},
      make("span", { className: `method ${method}` }, method.toUpperCase()),
      make("code", {}, path),
      make("span", { className: "about" }, operation.summary)),
    make("div", { className: "body" },
      operation.description ? make("p", {}, ...prose(operation.description)) : null,
      make("pre", { tabIndex: 0 }, example(path, method)),
      ...drawParameters(operation), ...drawBody(operation), ...drawResponses(operation)));
}

function draw(api) {
  document.title = `${api.info.title} ${api.info.version}`;
  for (const tag of api.tags) {
    const found = Object.entries(api.paths).flatMap(([path, item]) =>
      Object.entries(item).filter(([, operation]) => operation.tags.includes(tag.name))
        .map(([method, operation]) => drawOperation(path, method, operation)));
    $("operations").append(
      make("h2", { className: "tag" }, tag.name, make("small", {}, tag.description)), ...found);
  }
  $("schemas").append(make("h2", {}, "Schemas"),
    ...Object.entries(api.components.schemas).map(([name, schema]) => drawSchema(name, schema)));
  openLinked();
}

function openLinked() {
  const linked = location.hash && $(location.hash.slice(1));
  if (linked && linked.tagName === "DETAILS") {
    linked.open = true;
    linked.scrollIntoView();
  }
}

// ---- the page ----

async function showState() {
  const state = $("state");
  const response = await fetch("readyz").catch(() => null);
  state.className = `state ${response && response.ok ? "good" : "bad"}`;
  const answer = response && (await response.json());
  state.textContent = answer ? answer.code || answer.status : "out of reach";
}

addEventListener("hashchange", openLinked);
showState();
fetch("openapi.json").then((response) => response.json()).then(draw);
