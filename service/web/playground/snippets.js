// What was just done, as code that does it again.

import { address, readKey } from "./api.js";
import { $, make } from "./dom.js";

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const literal = (text) => JSON.stringify(text);

function curl({ file, url, hasKey }) {
  const key = hasKey ? ` -H "Authorization: Bearer $FIVECROP_KEY"` : "";
  // curl reads [], {} in a name given to -T as a pattern.
  return `curl${key} --data-binary ${quote(`@${file}`)} \\\n  ${quote(url)}`;
}

function python({ file, url, hasKey }) {
  return [
    "import json",
    hasKey ? "import os" : null,
    "import urllib.request",
    "from pathlib import Path",
    "",
    `image = Path(${literal(file)}).read_bytes()`,
    `request = urllib.request.Request(${literal(url)}, data=image)`,
    'request.add_header("Content-Type", "application/octet-stream")',
    hasKey ? 'request.add_header("Authorization", f"Bearer {os.environ[\'FIVECROP_KEY\']}")' : null,
    "with urllib.request.urlopen(request) as response:",
    "    answer = json.load(response)",
    'for one in answer["predictions"]:',
    '    print(one["label"], one["score"])',
  ].filter((line) => line !== null).join("\n");
}

function grpc({ file, options, hasKey, server }) {
  const given = Object.entries(options).map(([name, value]) =>
    `, ${name}=${typeof value === "number" ? value : literal(value)}`).join("");
  const channel = server.has_tls
    ? `grpc.secure_channel(${literal(server.grpc)}, grpc.ssl_channel_credentials())`
    : `grpc.insecure_channel(${literal(server.grpc)})`;
  return [
    hasKey ? "import os" : null,
    "from pathlib import Path",
    "",
    "import grpc",
    "from service.proto import image_classifier_pb2 as pb, image_classifier_pb2_grpc as rpc",
    "",
    `image = Path(${literal(file)}).read_bytes()`,
    hasKey ? 'metadata = [("authorization", f"Bearer {os.environ[\'FIVECROP_KEY\']}")]' : null,
    `with ${channel} as channel:`,
    `    request = pb.ClassifyRequest(image=image${given})`,
    `    answer = rpc.ImageClassifierStub(channel).Classify(request${hasKey ? ", metadata=metadata" : ""})`,
    "for one in answer.predictions:",
    "    print(one.label, one.score)",
  ].filter((line) => line !== null).join("\n");
}

function javascript({ file, url, hasKey }) {
  const key = hasKey ? ",\n  headers: { Authorization: `Bearer ${process.env.FIVECROP_KEY}` }" : "";
  return [
    'import { readFile } from "node:fs/promises";',
    "",
    `const response = await fetch(${literal(url)}, {`,
    '  method: "POST",',
    `  body: await readFile(${literal(file)})${key},`,
    "});",
    "const answer = await response.json();",
    "for (const one of answer.predictions) console.log(one.label, one.score);",
  ].join("\n");
}

const LANGUAGES = { curl, Python: python, gRPC: grpc, JavaScript: javascript };
let chosen = "curl";

/** Returns the section that shows how to ask for the same from code. */
export function drawSnippets(file, options, server) {
  const url = address("v1/classify", options).href;
  const grpcAddress = `${location.hostname}:${server.grpc_port}`;
  const asked = { file, options, url, hasKey: Boolean(readKey()), server: { ...server, grpc: grpcAddress } };
  const code = make("code", { id: "snippet" });
  const copy = make("button", { type: "button", className: "quiet" }, "Copy");
  const choose = (name) => {
    chosen = name;
    code.textContent = LANGUAGES[name](asked);
    copy.textContent = "Copy";
  };
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code.textContent).then(
      () => { copy.textContent = "Copied"; },
      () => { getSelection().selectAllChildren(code); copy.textContent = "Selected"; });
    $("status").textContent = `${copy.textContent}: ${chosen}`;
  });
  const radios = Object.keys(LANGUAGES).map((name) => {
    const radio = make("input", { type: "radio", name: "language", value: name, checked: name === chosen });
    radio.addEventListener("change", () => choose(name));
    return make("label", {}, radio, make("span", {}, name));
  });
  choose(chosen);
  return make("section", { className: "block" },
    make("div", { className: "block-head" },
      make("h3", {}, "The same from code"),
      make("fieldset", { className: "segments" }, make("legend", { className: "unseen" }, "Language"), ...radios),
      copy),
    make("pre", { tabIndex: 0, ariaLabel: "Code" }, code));
}
