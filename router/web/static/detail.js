// One request: why it went where it went, what it cost, and where the time went.

import { ask, count, dollars, h, hue, marked, percent, seconds } from "./dom.js";

const PARTS = [
  ["input_tokens", "input"],
  ["cache_read_input_tokens", "prompt cache read"],
  ["cache_write_5m", "prompt cache write, 5 min"],
  ["cache_write_1h", "prompt cache write, 1 h"],
  ["output_tokens", "output"],
];

export async function showTrace(panel, id, close) {
  let trace;
  try {
    trace = await ask(`/traces/${encodeURIComponent(id)}`);
  } catch (error) {
    panel.replaceChildren(head("Not found", close), h("p.problem", {}, error.message));
    panel.hidden = false;
    return null;
  }
  panel.replaceChildren(...[
    head(h("span.path", {}, `${trace.method} ${trace.path}`), close, trace),
    lead(trace),
    why(trace),
    money(trace),
    time(trace),
    attempts(trace),
    facts(trace),
    ids(trace),
  ].filter(Boolean));
  panel.hidden = false;
  panel.scrollTop = 0;
  return trace;
}

function head(title, close, trace) {
  return h("div.panel-head", {},
    h("h2", {}, title),
    trace && copy("link", () => `${location.origin}/t/${trace.trace_id}`),
    trace && copy("JSON", () => JSON.stringify(trace, null, 2)),
    h("button.quiet", { type: "button", onclick: close, title: "Close (Esc)", "aria-label": "Close" }, "✕"),
  );
}

function copy(label, text) {
  const button = h("button.quiet", { type: "button", title: `Copy ${label}` }, label);
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text());
    button.textContent = "copied";
    setTimeout(() => { button.textContent = label; }, 1200);
  });
  return button;
}

function section(title, ...content) {
  return h("section.block", {}, h("h3", {}, title), ...content);
}

export function lane(name) {
  return h("span.lane", { vars: { hue: hue(name) } }, name || "–");
}

export function outcome(trace) {
  const kind = trace.outcome === "ok" ? "good" : trace.outcome === "client_closed" ? "mild" : "bad";
  return h(`span.outcome.${kind}`, {}, trace.outcome === "ok" ? "ok" : `${trace.outcome.replaceAll("_", " ")} ${trace.status || ""}`);
}

function lead(trace) {
  return h("div.lead", {},
    h("div.route", {}, h("span", {}, trace.model_asked || "–"), h("b", { "aria-label": "was sent to" }, "→"), h("strong", {}, trace.model_sent || "–"), lane(trace.lane)),
    h("div.pills", {}, outcome(trace), h("span.pill", {}, `cache ${trace.cache}`), trace.is_streaming && h("span.pill", {}, "streamed"),
      trace.stop_reason && h("span.pill", {}, trace.stop_reason), ...trace.tags.map((tag) => h("span.pill", {}, tag))),
    (trace.error_type || trace.error_code) && h("p.problem", {}, [trace.error_code, trace.error_type].filter(Boolean).join(" ")),
  );
}

function why(trace) {
  const labels = Object.entries(trace.labels ?? {});
  return section("Why this route",
    h("p.quietly", {}, "policy ", h("code", {}, `${trace.policy}@${trace.revision}`), trace.rule ? " · rule " : "", trace.rule && h("code", {}, trace.rule)),
    trace.why.length > 0 && h("ol.why", {}, trace.why.map((reason) => h("li", {}, marked(reason)))),
    trace.edits.length > 0 && h("p", {}, "edits: ", trace.edits.join(", ")),
    conversation(trace.affinity),
    labels.length > 0 && h("div.labels", {}, labels.map(([name, value]) =>
      typeof value === "number"
        ? h("div.label", {}, h("span", {}, name.replaceAll("_", " ")), h("i.meter", { vars: { at: `${Math.min(1, Math.max(0, value)) * 100}%` } }), h("b", {}, value.toFixed(2)))
        : h("div.label", {}, h("span", {}, name), h("b.wide", {}, value && typeof value === "object" ? Object.entries(value).map(([place, added]) => `${place} ${added > 0 ? "+" : ""}${added}`).join(", ") : String(value))))),
  );
}

function conversation(affinity) {
  if (!affinity) return null;
  const told = [`${affinity.kept ? "kept" : "not kept"}: bound to `, lane(affinity.lane), ` with ${count(affinity.prefix_tokens)} tokens so far`];
  const cost = affinity.switch;
  if (!cost) return h("p.quietly", {}, "conversation ", ...told);
  return h("div", {},
    h("p.quietly", {}, "conversation ", ...told),
    h("p.quietly", {}, `next turn: staying ${dollars(cost.stay_first_usd)}, ${cost.to_model} ${dollars(cost.switch_first_usd)}; each later turn: ${dollars(cost.stay_later_usd)} against ${dollars(cost.switch_later_usd)} (estimates from the last turn; `
      + (cost.turns_to_earn === null ? `not earned back within ${cost.turns_allowed} turns)` : `earned back by turn ${cost.turns_to_earn})`)),
  );
}

function money(trace) {
  if (trace.cost_usd === null) {
    return section("Money", h("p.quietly", {}, trace.usage === null ? "Nothing was metered." : "The price of this model is unknown, so is the cost."), tokens(trace.usage));
  }
  const most = Math.max(trace.baseline_usd ?? 0, trace.cost_usd, 1e-15);
  const bar = (name, value, kind, note) => h(`div.money.${kind}`, {},
    h("span", {}, name), h("i.bar", { vars: { at: `${(Math.max(0, value ?? 0) / most) * 100}%` } }), h("b", {}, dollars(value)), note && h("small", {}, note));
  const share = trace.baseline_usd ? trace.saved_usd / trace.baseline_usd : null;
  return section("Money",
    bar("baseline", trace.baseline_usd, "baseline", `the same usage at ${trace.model_asked}`),
    bar("cost", trace.cost_usd, "cost", `prices of ${trace.price_version}`),
    bar("saved", trace.saved_usd, trace.saved_usd < 0 ? "lost" : "saved", share === null ? "" : percent(share)),
    tokens(trace.usage),
  );
}

function tokens(usage) {
  if (!usage) return null;
  const parts = PARTS.map(([key, name], at) => [name, usage[key] ?? 0, at]).filter(([, amount]) => amount > 0);
  const sum = parts.reduce((total, [, amount]) => total + amount, 0);
  if (!sum) return null;
  return h("div.tokens", {},
    h("div.stack", {}, parts.map(([name, amount, at]) => h(`i.part${at}`, { vars: { at: `${(amount / sum) * 100}%` }, title: `${name}: ${count(amount)}` }))),
    h("ul.legend", {}, parts.map(([name, amount, at]) => h(`li.part${at}`, {}, `${name} `, h("b", {}, count(amount)))),
      usage.thinking_tokens > 0 && h("li.none", {}, "of it thinking ", h("b", {}, count(usage.thinking_tokens))),
      usage.web_searches > 0 && h("li.none", {}, "web searches ", h("b", {}, count(usage.web_searches))),
      !usage.is_final && h("li.none", {}, "cut: output is a lower bound")),
  );
}

function time(trace) {
  const whole = Math.max(trace.duration_s, ...trace.spans.map((s) => s.end_s), ...trace.attempts.map((a) => a.ended_s ?? 0), 1e-9);
  const at = (value) => `${Math.min(100, Math.max(0, (value / whole) * 100))}%`;
  const bars = [
    ...trace.spans.map((s) => ({ name: s.name, from: s.start_s, to: s.end_s, kind: "own" })),
    ...trace.attempts.filter((a) => a.started_s !== null && a.started_s !== undefined).map((a, n) => ({
      name: `attempt ${n + 1}: ${a.lane}`, from: a.started_s, to: a.ended_s ?? trace.duration_s, first: a.first_byte_s, kind: a.outcome === "ok" ? "upstream" : "failed",
    })),
  ].sort((a, b) => a.from - b.from);
  return section("Time",
    h("div.waterfall", {}, bars.map((b) => h("div.step", {},
      h("span", { title: b.name }, b.name),
      h("div.track", {}, h(`i.${b.kind}`, { vars: { from: at(b.from), wide: at(b.to - b.from) } }),
        b.first !== null && b.first !== undefined && h("i.first", { vars: { from: at(b.first) }, title: `first byte ${seconds(b.first)}` })),
      h("b", {}, seconds(b.to - b.from))))),
    h("div.figures", {},
      figure("first token", seconds(trace.ttft_s)), figure("whole answer", seconds(trace.duration_s)), figure("the router's part", seconds(trace.overhead_s))),
  );
}

const figure = (name, value) => h("div", {}, h("span", {}, name), h("b", {}, value));

function attempts(trace) {
  if (trace.attempts.length < 2 && trace.attempts.every((a) => a.outcome === "ok")) return null;
  return section("Attempts", h("ol.attempts", {}, trace.attempts.map((a) =>
    h("li", {}, lane(a.lane), ` ${a.model} `, h(`span.outcome.${a.outcome === "ok" ? "good" : "bad"}`, {}, `${a.outcome.replaceAll("_", " ")} ${a.status ?? ""}`),
      h("small", {}, [a.error_type, a.retry_after_s !== null && a.retry_after_s !== undefined ? `retry after ${a.retry_after_s} s` : null, a.request_id].filter(Boolean).join(" · "))))));
}

function facts(trace) {
  const entries = Object.entries(trace.facts ?? {});
  if (!entries.length) return null;
  return section("Facts", table(entries.map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)])));
}

function ids(trace) {
  return section("Ids", table([
    ["trace", trace.trace_id], ["request", trace.request_id], ["started", trace.started_at], ["tenant", trace.tenant], ["key", trace.key],
    ["client", trace.client], ["conversation", trace.conversation], ["answered by", trace.model_answered],
  ].filter(([, value]) => value)));
}

const table = (entries) => h("dl.facts", {}, entries.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
