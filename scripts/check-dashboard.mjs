// Holds a Grafana dashboard, on standard input, to the types that Grafana publishes of it in npm, below
// the folder that is given. A line on standard error for each fault, with its line of the dashboard.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

const folder = resolve(process.argv[2]);
const ts = createRequire(join(folder, "package.json"))("typescript");

// JSON has no enums, only their values, and Grafana fills in what the options of a panel leave out. Of a
// query the package has no type: https://grafana.com/docs/grafana/v11.4/datasources/prometheus/query-editor/
const TYPES = `
import type { Dashboard, DataSourceRef, FieldConfig, FieldConfigSource, Panel }
  from "@grafana/schema/dist/esm/raw/dashboard/x/dashboard_types.gen";
import type * as heatmap
  from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type * as timeseries
  from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

type Json<T> = T extends string ? \`\${T}\` : T extends object ? { [K in keyof T]?: Json<T[K]> } : T;
type Query = {
  refId: string;
  datasource: DataSourceRef;
  expr: string;
  legendFormat: string;
  format: "time_series" | "heatmap" | "table";
};
type Drawn<Type, Options, Custom> =
  Required<Pick<Panel, "id" | "title" | "gridPos" | "datasource">>
  & Omit<Panel, "type" | "options" | "fieldConfig" | "targets">
  & {
    type: Type;
    options?: Json<Options>;
    fieldConfig?: Omit<FieldConfigSource, "defaults">
      & { defaults: Omit<FieldConfig, "custom"> & { custom?: Json<Custom> } };
    targets: Query[];
  };
type Checked = Omit<Dashboard, "panels"> & {
  uid: string;
  title: string;
  panels: (
    | Drawn<"timeseries", timeseries.Options, timeseries.FieldConfig>
    | Drawn<"heatmap", heatmap.Options, heatmap.FieldConfig>
  )[];
};
`;
const file = join(folder, "dashboard.ts"); // only in memory
const source = `${TYPES}export const dashboard: Checked = ${readFileSync(0, "utf8")};`;
const options = {
  strict: true,
  noEmit: true,
  skipLibCheck: true,
  types: [],
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.ESNext,
  moduleResolution: ts.ModuleResolutionKind.Bundler,
};
const host = ts.createCompilerHost(options);
const { getSourceFile } = host;
host.getSourceFile = (name, ...rest) =>
  name === file ? ts.createSourceFile(name, source, options.target) : getSourceFile(name, ...rest);

const before = TYPES.split("\n").length - 1;
for (const fault of ts.getPreEmitDiagnostics(ts.createProgram([file], options, host))) {
  const line = fault.file ? fault.file.getLineAndCharacterOfPosition(fault.start).line - before + 1 : 0;
  console.error(`${line}: ${ts.flattenDiagnosticMessageText(fault.messageText, " ")}`);
  process.exitCode = 1;
}
