// The API as a list, out of the service's own OpenAPI description.

import { $, h } from "./dom.js";
import { tryIt } from "./try.js";

const METHODS = ["get", "post", "put", "patch", "delete"];

function operation(path, method, spec) {
  const parts = [h("p", {}, spec.description ?? "")];
  const parameters = spec.parameters ?? [];
  if (parameters.length) {
    parts.push(h("div", {}, h("h3", {}, "Parameters"), h("table", {}, ...parameters.map((one) => h("tr", {},
      h("td", {}, h("code", {}, one.name)), h("td", {}, one.in), h("td", {}, kind(one.schema)),
      h("td", {}, one.required ? "required" : ""), h("td", {}, one.description ?? one.schema?.description ?? ""))))));
  }
  const bodies = Object.entries(spec.requestBody?.content ?? {});
  for (const [type, { schema }] of bodies.filter(([, { schema }]) => schema.properties)) {
    parts.push(h("div", {}, h("h3", {}, type), h("pre", {}, outline(schema))));
  }
  const raw = bodies.filter(([, { schema }]) => !schema.properties).map(([type]) => type);
  if (raw.length) parts.push(h("div", {}, h("h3", {}, raw.join(", ")), h("pre", {}, "the bytes of the file")));
  parts.push(h("div", {}, h("h3", {}, "Example"), h("pre", {}, example(path, method, spec))), tryIt(path, method, spec));
  return h("details", {},
    h("summary", {}, h("span", { class: `method ${method}` }, method.toUpperCase()), h("code", {}, path), h("span", {}, spec.summary ?? "")),
    h("div", { class: "body" }, ...parts));
}

function kind(schema = {}) {
  const options = schema.oneOf ?? schema.anyOf;
  if (options) return options.map(kind).filter((one) => one !== "null").join(" or ");
  if (schema.type === "array") return `[${kind(schema.items)}]`;
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  const bounds = [schema.minimum, schema.maximum].some((x) => x !== undefined) ? ` ${schema.minimum ?? ""}…${schema.maximum ?? ""}` : "";
  return `${schema.format ?? schema.type ?? "any"}${bounds}`;
}

function outline(schema, indent = "") {
  if (schema.type !== "object" || !schema.properties) return `${indent}${kind(schema)}`;
  const lines = Object.entries(schema.properties).map(([name, one]) => {
    const note = one.description ? `   # ${one.description}` : "";
    const mark = schema.required?.includes(name) ? "" : "?";
    if (one.properties) return `${indent}${name}${mark}: {\n${outline(one, `${indent}  `)}\n${indent}}`;
    if (one.items?.properties) return `${indent}${name}${mark}: [{\n${outline(one.items, `${indent}  `)}\n${indent}}]`;
    return `${indent}${name}${mark}: ${kind(one)}${note}`;
  });
  return lines.join("\n");
}

function example(path, method, spec) {
  const content = spec.requestBody?.content ?? {};
  const words = ["curl"];
  if (method !== "get") words.push("-X", method.toUpperCase());
  if (content["image/png"]) words.push("-H 'Content-Type: image/png' --data-binary @image.png");
  else if (content["multipart/form-data"]) words.push("-F image=@image.png -F class=NAME");
  else if (content["application/json"]) words.push("--json '{\"vectors\": [[0.1, 0.2]], \"k\": 5}'");
  return [...words, location.origin + path.replaceAll("{", "").replaceAll("}", "").replace(/\/(item_id|version|name)\b/g, (_, name) => `/${name.toUpperCase()}`)].join(" ");
}

const api = await (await fetch("/openapi.json")).json();
$("about").textContent = api.info.description.replaceAll("`", "");
const groups = new Map();
for (const [path, methods] of Object.entries(api.paths)) {
  for (const method of METHODS.filter((one) => methods[one])) {
    const tag = methods[method].tags?.[0] ?? "other";
    groups.set(tag, [...(groups.get(tag) ?? []), operation(path, method, methods[method])]);
  }
}
$("operations").replaceChildren(...[...groups].flatMap(([tag, rows]) => [h("h2", {}, tag), ...rows]));
