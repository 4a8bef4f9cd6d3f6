// Two requests side by side: what differs first, in the order in which one asks; what is the same is folded away.

import { traceData, tracePath } from "./address.js";
import { ask, clock, copyButton, count, dollars, h, percent, seconds } from "./dom.js";

// What differs is in this order; a name stands for itself and for what is below it.
const FIRST = [
  "outcome", "status", "error_type", "error_code", "policy", "revision", "rule", "why", "lane", "model_asked",
  "model_sent", "model_answered", "cache", "cache_reason", "cost_usd", "baseline_usd", "saved_usd", "ttft_s",
  "duration_s", "overhead_s", "stop_reason", "usage", "labels", "affinity", "tags", "edits", "facts"];
const NOT_ITS_OWN = ["spans", "mark", "cut", "is_here"]; // spans are added up; the others are of its row in Redis
const LAST = ["attempts", "spans", "started_at", "trace_id", "request_id"]; // of any two requests these differ
const NONE = [undefined, null, ""];

/** Both requests into the panel. `actions`: `close()`, `open(id, isStep, mate)`. Returns null, as there is not one. */
export async function showPair(panel, id, mate, actions, isWanted) {
  let pair;
  try {
    pair = await Promise.all([id, mate].map((each) => ask(traceData(each))));
  } catch (error) {
    if (isWanted()) {
      panel.replaceChildren(head(id, mate, actions), h("p.problem", {}, error.message));
      panel.hidden = false;
    }
    return null;
  }
  if (!isWanted()) return null;
  const [one, other] = pair.map(fields);
  const names = [...new Set([...one.keys(), ...other.keys()])].sort((a, b) => rank(a) - rank(b));
  const isNone = (value) => NONE.includes(value);
  const isSame = (name) => one.get(name) === other.get(name) || (isNone(one.get(name)) && isNone(other.get(name)));
  const differing = names.filter((name) => !isSame(name));
  const same = names.filter((name) => isSame(name) && !isNone(one.get(name)));
  const alone = (trace, at) => h("button.cell.link", {
    type: "button", title: "Only this one", onclick: () => actions.open([id, mate][at]) },
    `${clock(trace.started_at)} ${trace.model_sent || trace.model_asked || trace.path}`);
  panel.replaceChildren(
    head(id, mate, actions),
    h("table.pair", { "aria-label": "What differs" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, `${count(differing.length)} differ`),
        ...pair.map((trace, at) => h("th", { scope: "col" }, alone(trace, at))))),
      h("tbody", {}, differing.map((name) => h("tr", { "data-field": name }, h("th", { scope: "row" }, told(name)),
        h("td", {}, shown(name, one.get(name))),
        h("td", {}, shown(name, other.get(name)), change(name, one.get(name), other.get(name))))))),
    h("details", {}, h("summary", {}, `${count(same.length)} are the same`),
      h("table.pair.same", { "aria-label": "What is the same" }, h("tbody", {}, same.map((name) =>
        h("tr", { "data-field": name }, h("th", { scope: "row" }, told(name)), h("td", { colspan: "2" }, shown(name, one.get(name)))))))));
  panel.hidden = false;
  panel.scrollTop = 0;
  return null;
}

function head(id, mate, actions) {
  return h("div.panel-head", {},
    h("h2", {}, "Two requests"),
    h("button.quiet", {
      type: "button", onclick: () => actions.open(mate, true, id), title: "The other one first", "aria-label": "Swap" }, "⇄"),
    copyButton("link", () => `${location.origin}${tracePath(id)}?with=${encodeURIComponent(mate)}`),
    h("button.quiet", { type: "button", onclick: () => actions.close(), title: "Close (Esc)", "aria-label": "Close" }, "✕"));
}

/** A trace as one level of names and plain values; names below another one are joined by dots. */
function fields(trace) {
  const found = new Map();
  const add = (name, value) => {
    if (value === null || typeof value !== "object") found.set(name, value);
    else if (Array.isArray(value) && value.every((each) => each === null || typeof each !== "object"))
      found.set(name, value.join(name === "why" ? "\n" : ", "));
    else for (const [key, each] of Object.entries(value)) add(`${name}.${Array.isArray(value) ? Number(key) + 1 : key}`, each);
  };
  for (const [name, value] of Object.entries(trace)) if (!NOT_ITS_OWN.includes(name)) add(name, value);
  for (const { name, start_s: from, end_s: to } of trace.spans ?? []) found.set(`spans.${name}_s`, (found.get(`spans.${name}_s`) ?? 0) + to - from);
  return found;
}

function rank(name) {
  const top = name.split(".", 1)[0];
  const [first, last] = [FIRST.indexOf(top), LAST.indexOf(top)];
  return first >= 0 ? first : last >= 0 ? FIRST.length + 1 + last : FIRST.length;
}

const told = (name) => name.replace(/_(usd|s)$/, "").replaceAll("_", " ");

function shown(name, value) {
  if (NONE.includes(value)) return h("span.mute", {}, "–");
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  if (name.endsWith("_usd")) return dollars(value);
  if (name.endsWith("_s")) return seconds(value);
  return name.startsWith("usage.") ? count(value) : String(+value.toPrecision(6));
}

/** How much more or less an amount is than the first one. */
function change(name, from, to) {
  const isAmount = name.endsWith("_usd") || name.endsWith("_s") || name.startsWith("usage.");
  if (!isAmount || typeof from !== "number" || typeof to !== "number" || from <= 0 || to < 0) return null;
  const times = to / from;
  return h("small", {}, times >= 2 ? ` ${times.toFixed(1)} times` : ` ${times < 1 ? "−" : "+"}${percent(Math.abs(times - 1))}`);
}
