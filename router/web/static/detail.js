// One request: why it went where it went, what it cost, and where the time went.

import { isFleet, traceData, tracePath } from "./address.js";
import { command } from "./curl.js";
import { content } from "./content.js";
import { ask, copyButton, count, dollars, h, percent, seconds } from "./dom.js";
import { lane, now, section, why } from "./why.js";

export { lane };

const PARTS = [
  ["input_tokens", "input"],
  ["cache_read_input_tokens", "prompt cache read"],
  ["cache_write_5m", "prompt cache write, 5 min"],
  ["cache_write_1h", "prompt cache write, 1 h"],
  ["output_tokens", "output"],
];

/**
 * One trace into the panel. `actions`: `close()`, `step(by)`, `filterBy(name, value)`, `compare(trace)`,
 * `isMarked(trace)`. Null when there is none, or when
 * `isWanted()` no longer holds because another one was asked for meanwhile.
 */
export async function showTrace(panel, id, actions, isWanted = () => true) {
  let trace;
  try {
    trace = await ask(traceData(id));
  } catch (error) {
    if (!isWanted()) return null;
    panel.replaceChildren(head("Not found", actions), h("p.problem", {}, error.message));
    panel.hidden = false;
    return null;
  }
  if (!isWanted()) return null;
  const filter = (name, value, shown = value) => h("button.cell.link", {
    type: "button", title: `Only ${name} ${value}`, onclick: () => actions.filterBy(name, value) }, shown);
  panel.replaceChildren(...[
    head(h("span.path", { title: `${trace.method} ${trace.path}` }, `${trace.method} ${trace.path}`), actions, trace),
    trace.pod && home(trace),
    lead(trace, filter),
    why(trace, filter),
    trace.pod ? null : now(trace),
    money(trace),
    time(trace, filter),
    attempts(trace),
    facts(trace),
    ids(trace, filter),
    trace.pod ? null : content(trace),
  ].filter(Boolean));
  panel.hidden = false;
  panel.scrollTop = 0;
  return trace;
}

/** Whose request it is, where the fleet's are looked at. */
function home(trace) {
  return h("p.quietly.home", {}, "Served by ", h("code", {}, trace.pod), trace.is_here && ", which is this router",
    ". This is its row in Redis; captured words and what today's policies would do are on that router's own page.",
    trace.cut.length > 0 && ` Too large for the row, and left out: ${trace.cut.join(", ")}.`);
}

function head(title, actions, trace) {
  return h("div.panel-head", {},
    h("h2", {}, title),
    h("button.quiet", {
      type: "button", onclick: () => actions.step(-1), title: "The newer one (k)", "aria-label": "Newer request" }, "‹"),
    h("button.quiet", {
      type: "button", onclick: () => actions.step(1), title: "The older one (j)", "aria-label": "Older request" }, "›"),
    trace && h("button.quiet", {
      type: "button", "data-compare": true, "aria-pressed": String(actions.isMarked(trace)),
      title: "Mark it; in another request: compare the two (c)", onclick: () => actions.compare(trace) }, "compare"),
    trace && copyButton("link", () => location.origin + tracePath(trace.request_id || trace.trace_id) + (isFleet() ? "?fleet=1" : "")),
    trace && copyButton("curl", () => command(trace), "Copy as curl, without key and words"),
    trace && copyButton("JSON", () => JSON.stringify(trace, null, 2)),
    h("button.quiet", { type: "button", onclick: () => actions.close(), title: "Close (Esc)", "aria-label": "Close" }, "✕"),
  );
}

export function outcome(trace) {
  const kind = trace.outcome === "ok" ? "good" : trace.outcome === "client_closed" ? "mild" : "bad";
  return h(`span.outcome.${kind}`, {}, trace.outcome === "ok" ? "ok" : `${trace.outcome.replaceAll("_", " ")} ${trace.status || ""}`);
}

function lead(trace, filter) {
  return h("div.lead", {},
    h("div.route", {},
      h("span", {}, trace.model_asked || "–"), h("b", { "aria-label": "was sent to" }, "→"),
      h("strong", {}, trace.model_sent ? filter("model", trace.model_sent) : "–"),
      trace.lane && filter("lane", trace.lane, lane(trace.lane))),
    h("div.pills", {},
      filter("outcome", trace.outcome, outcome(trace)),
      h("span.pill", {}, `cache ${trace.cache}`,
        trace.cache_reason && `: ${trace.cache_reason}`, trace.is_stored && ", stored"),
      trace.is_streaming && h("span.pill", {}, "streamed"),
      trace.stop_reason && h("span.pill", {}, trace.stop_reason), ...trace.tags.map((tag) => h("span.pill", {}, tag))),
    (trace.error_type || trace.error_code) && h("p.problem", {}, [trace.error_code, trace.error_type].filter(Boolean).join(" ")),
  );
}

function money(trace) {
  if (trace.cost_usd === null) {
    return section("Money",
      h("p.quietly", {},
        trace.usage === null ? "Nothing was metered." : "The price of this model is unknown, so is the cost."),
      tokens(trace.usage));
  }
  const most = Math.max(trace.baseline_usd ?? 0, trace.cost_usd, 1e-15);
  const bar = (name, value, kind, note) => h(`div.money.${kind}`, {},
    h("span", {}, name), h("i.bar", { vars: { at: `${(Math.max(0, value ?? 0) / most) * 100}%` } }),
    h("b", {}, dollars(value)), note && h("small", {}, note));
  const share = trace.baseline_usd ? trace.saved_usd / trace.baseline_usd : null;
  return section("Money",
    bar("baseline", trace.baseline_usd, "baseline", `the same usage at ${trace.model_asked}`),
    bar("cost", trace.cost_usd, "cost", `prices of ${trace.price_version}`),
    bar("saved", trace.saved_usd, trace.saved_usd < 0 ? "lost" : "saved", share === null ? "" : percent(share)),
    cacheEffects(trace),
    tokens(trace.usage),
  );
}

function cacheEffects(trace) {
  const { prompt_cache_read_saved_usd: read, prompt_cache_write_extra_usd: written } = trace;
  if (!read && !written) return null;
  return h("p.quietly", {}, `inside the cost: prompt cache reads saved ${dollars(read ?? 0)}, writes cost ${dollars(written ?? 0)} more`);
}

function tokens(usage) {
  if (!usage) return null;
  const parts = PARTS.map(([key, name], at) => [name, usage[key] ?? 0, at]).filter(([, amount]) => amount > 0);
  const sum = parts.reduce((total, [, amount]) => total + amount, 0);
  if (!sum) return null;
  return h("div.tokens", {},
    h("div.stack", {}, parts.map(([name, amount, at]) =>
      h(`i.part${at}`, { vars: { at: `${(amount / sum) * 100}%` }, title: `${name}: ${count(amount)}` }))),
    h("ul.legend", {}, parts.map(([name, amount, at]) => h(`li.part${at}`, {}, `${name} `, h("b", {}, count(amount)))),
      usage.thinking_tokens > 0 && h("li.none", {}, "of it thinking ", h("b", {}, count(usage.thinking_tokens))),
      usage.web_searches > 0 && h("li.none", {}, "web searches ", h("b", {}, count(usage.web_searches))),
      !usage.is_final && h("li.none", {}, "cut: output is a lower bound")),
  );
}

function time(trace, filter) {
  const whole = Math.max(trace.duration_s, ...trace.spans.map((s) => s.end_s), ...trace.attempts.map((a) => a.ended_s ?? 0), 1e-9);
  const at = (value) => `${Math.min(100, Math.max(0, (value / whole) * 100))}%`;
  const bars = [
    ...trace.spans.map((s) => ({ name: s.name, from: s.start_s, to: s.end_s, kind: "own" })),
    ...trace.attempts.filter((a) => a.started_s !== null && a.started_s !== undefined).map((a, n) => ({
      name: `attempt ${n + 1}: ${a.lane}`, from: a.started_s, to: a.ended_s ?? trace.duration_s,
      first: a.first_byte_s, kind: a.outcome === "ok" ? "upstream" : "failed",
    })),
  ].sort((a, b) => a.from - b.from);
  return section("Time",
    h("div.step.scale", { "aria-hidden": "true" }, h("span", {}),
      h("div.ticks", {}, h("span", {}, "0"), h("span", {}, seconds(whole / 2)), h("span", {}, seconds(whole))),
      h("b", {})),
    h("div.waterfall", { role: "list" }, bars.map((b) => h("div.step", { role: "listitem" },
      h("span", { title: b.name }, b.name),
      h("div.track", {}, h(`i.${b.kind}`, { vars: { from: at(b.from), wide: at(b.to - b.from) } }),
        b.first !== null && b.first !== undefined
          && h("i.first", { vars: { from: at(b.first) }, title: `first byte ${seconds(b.first)}` })),
      h("b", {}, seconds(b.to - b.from))))),
    h("div.figures", {},
      figure("first token", seconds(trace.ttft_s)), figure("whole answer", atLeast(trace.duration_s, filter)),
      figure("the router's part", seconds(trace.overhead_s))),
  );
}

/** How long it took; a click shows what took as long or longer. */
function atLeast(took, filter) {
  const ms = Math.floor(took * 1000);
  return ms > 0 ? filter("min_duration", ms < 1000 ? `${ms}ms` : `${ms / 1000}s`, seconds(took)) : seconds(took);
}

const figure = (name, value) => h("div", {}, h("span", {}, name), h("b", {}, value));

function attempts(trace) {
  if (trace.attempts.length < 2 && trace.attempts.every((a) => a.outcome === "ok" && !a.is_resent)) return null;
  return section("Attempts", h("ol.attempts", {}, trace.attempts.map((a) =>
    h("li", {}, lane(a.lane), ` ${a.model} `,
      h(`span.outcome.${a.outcome === "ok" ? "good" : "bad"}`, {}, `${a.outcome.replaceAll("_", " ")} ${a.status ?? ""}`),
      h("small", {}, [
        a.error_type,
        a.is_resent ? "sent twice" : null,
        a.retry_after_s !== null && a.retry_after_s !== undefined ? `retry after ${a.retry_after_s} s` : null,
        a.request_id].filter(Boolean).join(" · "))))));
}

function facts(trace) {
  const entries = Object.entries(trace.facts ?? {});
  if (!entries.length) return null;
  return section("Facts", table(entries.map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)])));
}

function ids(trace, filter) {
  const only = (name) => trace[name] && filter(name, trace[name]);
  return section("Ids", table([
    ["trace", trace.trace_id], ["request", trace.request_id], ["started", trace.started_at],
    ["status", trace.status >= 100 && filter("status", String(trace.status))], ["endpoint", only("endpoint")], ["task", only("task")], ["tenant", only("tenant")],
    ["key", only("key")], ["client", trace.client], ["conversation", only("conversation")],
    ["session", only("session")], ["batch", only("batch")],
    ["results", trace.batch_lines && Object.entries(trace.batch_lines).map(([kind, n]) => `${n} ${kind}`).join(", ")],
    ["answered by", trace.model_answered],
  ].filter(([, value]) => value)));
}

const table = (entries) => h("dl.facts", {}, entries.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
