// One request of the API tried from its description: fields for its parameters and body, then what was answered.

import { send } from "./api.js";
import { h } from "./dom.js";

const FORM = "multipart/form-data";

export function tryIt(path, method, spec) {
  const parameters = (spec.parameters ?? []).map((one) => ({ ...one, input: field(one) }));
  const bodies = new Map(Object.entries(spec.requestBody?.content ?? {}).map(([type, { schema }]) => [type, body(type, schema)]));
  const types = h("select", { "aria-label": "kind of body" }, ...[...bodies.keys()].map((type) => h("option", {}, type)));
  const chosen = h("div", {});
  const pick = () => chosen.replaceChildren(...(bodies.get(types.value)?.rows ?? []));
  types.addEventListener("change", pick);
  pick();
  const button = h("button", { class: "primary", type: "button" }, `Send ${method.toUpperCase()}`);
  const answer = h("output", {});
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const [url, headers] = address(path, parameters);
      const sent = bodies.get(types.value)?.read();
      if (sent !== undefined && types.value !== FORM) headers["Content-Type"] = types.value;
      answer.replaceChildren(...await shown(await send(url, { method: method.toUpperCase(), headers, body: sent })));
    } catch (error) {
      answer.replaceChildren(h("p", { class: "error" }, error.message));
    } finally {
      button.disabled = false;
    }
  });
  const rows = parameters.map((one) => row(one.name, one.input));
  return h("div", { class: "try" }, h("h3", {}, "Try it"), ...rows, bodies.size ? types : null, chosen, button, answer);
}

const row = (name, input) => h("label", {}, h("code", {}, name), input);

function field({ name, schema = {}, required, description }) {
  return h("input", { name, required, placeholder: schema.default ?? description ?? "" });
}

function address(path, parameters) {
  const query = new URLSearchParams(), headers = {};
  for (const { name, in: where, required, input } of parameters) {
    if (where === "path") path = path.replace(`{${name}}`, encodeURIComponent(input.value));
    if (required && !input.value) throw new Error(`${name} is needed`);
    if (where === "query" && input.value) query.set(name, input.value);
    if (where === "header" && input.value) headers[name] = input.value;
  }
  return [query.size ? `${path}?${query}` : path, headers];
}

/** Rows of inputs for a body, and what reads it out of them. */
function body(type, schema) {
  if (type === "application/json") {
    const text = h("textarea", { rows: 6, spellcheck: "false", "aria-label": "JSON body" });
    text.value = JSON.stringify(sample(schema), null, 1);
    return { rows: [text], read: () => text.value };
  }
  const properties = type === FORM ? schema.properties : { file: schema };
  const inputs = Object.entries(properties).map(([name, one]) => [name, input(name, one)]);
  const read = () => {
    if (type !== FORM) return inputs[0][1].files[0];
    const form = new FormData();
    for (const [name, one] of inputs) for (const value of one.files ?? (one.value ? [one.value] : [])) form.append(name, value);
    return form;
  };
  return { rows: inputs.map(([name, one]) => row(name, one)), read };
}

function input(name, schema) {
  const binary = [schema, schema.items].some((one) => one?.format === "binary");
  return binary ? h("input", { type: "file", name, multiple: schema.type === "array" }) : h("input", { name, placeholder: schema.description ?? "" });
}

/** A value of the schema: what is required, or else the first property. */
function sample(schema) {
  if (schema.oneOf) return sample(schema.oneOf[0]);
  if (schema.type === "array") return [sample(schema.items)];
  if (schema.type !== "object") return schema.default ?? (schema.type === "string" ? "" : 0.5);
  const names = schema.required ?? Object.keys(schema.properties ?? {}).slice(0, 1);
  return Object.fromEntries(names.map((name) => [name, sample(schema.properties[name])]));
}

async function shown(response) {
  const type = response.headers.get("content-type") ?? "", status = `${response.status} ${response.statusText}`;
  const head = h("p", { class: response.ok ? "" : "error" }, status);
  if (type.startsWith("image/")) return [head, h("img", { src: URL.createObjectURL(await response.blob()), alt: "" })];
  const text = await response.text();
  return [head, h("pre", {}, type.startsWith("application/json") ? JSON.stringify(JSON.parse(text), null, 1) : text)];
}
