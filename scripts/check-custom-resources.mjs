// Validates custom resources, a JSON array on standard input, with the schemas of the packages below
// the folder that is given. A line on standard error for each fault.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { join } from "node:path";

const FOLDERS = {
  "monitoring.coreos.com/v1": "prometheus-operator/monitoring.coreos.com/v1",
  "keda.sh/v1alpha1": "keda/keda.sh/v1alpha1",
};

for (const manifest of JSON.parse(readFileSync(0, "utf8"))) {
  const place = `${manifest.kind}/${manifest.metadata.name}`;
  try {
    const folder = join(process.argv[2], "node_modules/@kubernetes-models", FOLDERS[manifest.apiVersion]);
    const kinds = await import(pathToFileURL(join(folder, "index.js")));
    new kinds[manifest.kind](manifest).validate();
  } catch (error) {
    console.error(`${place}: ${error.message.replaceAll("\n", " ")}`);
    process.exitCode = 1;
  }
}
