// The figures over time, by a group of the reader's choice: nine charts that share one time, one legend, one cursor.

import { GROUPS, group } from "./address.js";
import { Chart } from "./chart.js";
import { $, count, dollars, fewCount, fewDollars, h, moment, percent, seconds } from "./dom.js";

const few = (value) => percent(value);
const CHARTS = [
  { title: "Cost", kind: "bars", key: "cost_usd", format: dollars, few: fewDollars, sum: (t) => dollars(t.cost_usd) },
  { title: "Saved", kind: "bars", key: "saved_usd", format: dollars, few: fewDollars, sum: (t) => dollars(t.saved_usd) },
  { title: "Requests", kind: "bars", key: "requests", format: count, few: fewCount, sum: (t) => count(t.requests) },
  { title: "Errors", kind: "bars", key: "errors", format: count, few: fewCount, sum: (t) => count(t.not_ok) },
  { title: "Cache hits", kind: "lines", key: "hit_rate", format: percent, few, sum: (t) => percent(t.hit_rate) },
  { title: "First token, p50", kind: "lines", key: "ttft_p50_s", format: seconds, few: seconds, sum: (t) => seconds(t.ttft_p50_s) },
  { title: "First token, p95", kind: "lines", key: "ttft_p95_s", format: seconds, few: seconds, sum: (t) => seconds(t.ttft_p95_s) },
  { title: "Whole answer, p50", kind: "lines", key: "duration_p50_s", format: seconds, few: seconds, sum: (t) => seconds(t.duration_p50_s) },
  { title: "Whole answer, p95", kind: "lines", key: "duration_p95_s", format: seconds, few: seconds, sum: (t) => seconds(t.duration_p95_s) },
];

const color = (series, at) => (series.is_rest ? "rest" : `s${at % 8}`);
const nameOf = (series) => series.name || "–";

/** The cards: what it comes to. `figures` is an answer of `/figures`. */
export function showTotals(figures) {
  const t = figures.totals;
  const card = (name, value, note, kind = "") => h(`div.card${kind}`, {}, h("span", {}, name), h("strong", {}, value), h("small", { title: note }, note));
  const lookups = t.cache_hits + t.cache_coalesced + t.cache_misses;
  const unknown = t.cost_without_baseline_usd ? `+ ${dollars(t.cost_without_baseline_usd)} without a baseline (${count(t.unknown_cost)} unknown)`
    : t.unknown_cost ? `+ ${count(t.unknown_cost)} of unknown price` : "every price known";
  $("totals").replaceChildren(
    card("Saved", dollars(t.saved_usd), t.saved_share === null ? "against the model asked for" : `${percent(t.saved_share)} of ${dollars(t.baseline_usd)}`, t.saved_usd < 0 ? ".loss" : ".gain"),
    card("Cost", dollars(t.cost_usd), unknown),
    card("Requests", count(t.requests), t.not_ok ? `${count(t.not_ok)} not ok` : "all ok"),
    card("Cache hits", percent(t.hit_rate), `${count(t.cache_hits + t.cache_coalesced)} of ${count(lookups)} look-ups`),
    card("First token", seconds(t.ttft_p50_s), `p95 ${seconds(t.ttft_p95_s)}`),
    card("Whole answer", seconds(t.duration_p50_s), `p95 ${seconds(t.duration_p95_s)}`),
  );
  const said = [];
  if (figures.ignored.length) said.push(`The figures do not know ${figures.ignored.join(", ")}: they are of all requests otherwise chosen.`);
  if (figures.is_complete === false) said.push("The figures are still being added up from older requests.");
  $("aside-note").hidden = said.length === 0;
  $("aside-note").textContent = said.join(" ");
}

export class Overview {
  /** `actions`: `filterBy(name, value)`, `between(since, until)`, `groupBy(name)`. */
  constructor(actions) {
    this.actions = actions;
    this.charts = CHARTS.map((spec) => new Chart({ ...spec, pick: (at) => this.pick(at), point: (at, chart) => this.point(at, chart) }));
    $("charts").replaceChildren(...this.charts.map((chart) => chart.element));
  }

  show(figures) {
    this.figures = figures;
    const by = group();
    $("by").replaceChildren(...GROUPS.map((name) =>
      h("button", { type: "button", "aria-pressed": String(name === by), onclick: () => this.actions.groupBy(name) }, name)));
    const series = figures.series.map((one, at) => ({ ...one, color: color(one, at) }));
    const isDay = figures.step_s >= 86400;
    this.charts.forEach((chart, at) => {
      const { key, sum } = CHARTS[at];
      chart.update({ times: figures.times, isDay, sum: sum(figures.totals), series: series.map((one) => ({ name: one.name, color: one.color, values: one.points[key] })) });
    });
    this.groups(series, by);
    this.parts(figures.totals);
    this.month(figures.projection);
    if ($("as-table").open) this.table();
  }

  pick(at) {
    const iso = (unixS) => new Date(unixS * 1000).toISOString().slice(0, 19) + "Z";
    const from = this.figures.times[at];
    this.actions.between(iso(from), iso(from + this.figures.step_s));
  }

  point(at, pointed) {
    for (const chart of this.charts) chart.show(at, chart === pointed);
  }

  groups(series, by) {
    const most = Math.max(...series.map(({ totals: t }) => Math.max(t.baseline_usd, t.cost_usd)), 1e-15);
    const most100 = (value) => `${(Math.max(0, value) / most) * 100}%`;
    $("groups").replaceChildren(...series.map((one) => {
      const t = one.totals;
      const kind = t.saved_usd < 0 ? ".loss" : t.saved_usd > 0 ? ".gain" : "";
      return h("tr", {},
        h("th.name", { scope: "row" }, h(`i.swatch.${one.color}`, {}), one.is_rest || !one.name ? h("span", {}, one.is_rest ? "all others" : "–")
          : h("button.cell", { type: "button", title: `Only ${by} ${one.name}`, onclick: () => this.actions.filterBy(by, one.name) }, one.name)),
        h("td.wide", {}, h("div.double", { title: `baseline ${dollars(t.baseline_usd)}` }, h("i.baseline", { vars: { at: most100(t.baseline_usd) } }), h("i.cost", { vars: { at: most100(t.cost_usd) } }))),
        h("td.n", {}, dollars(t.cost_usd)),
        h(`td.n${kind}`, {}, dollars(t.saved_usd)),
        h(`td.n${kind}.much`, {}, t.saved_share === null ? "–" : percent(t.saved_share)),
        h("td.n", {}, count(t.requests)),
        h("td.n.much", {}, t.not_ok ? h("span.loss", {}, count(t.not_ok)) : "0"),
        h("td.n.much", {}, percent(t.hit_rate)),
        h("td.n.much", {}, `${seconds(t.ttft_p50_s)} / ${seconds(t.ttft_p95_s)}`),
        h("td.n.much", {}, `${seconds(t.duration_p50_s)} / ${seconds(t.duration_p95_s)}`));
    }));
    $("group-name").textContent = by;
    $("no-figures").hidden = series.length > 0;
  }

  /** What saved is made of, and what the provider's own cache did: inside the cost, so said apart. */
  parts(t) {
    const told = [];
    if (t.cache_saved_usd) told.push(`of the saved, ${dollars(t.cache_saved_usd)} by answers from the router's cache`);
    if (t.prompt_cache_read_saved_usd || t.prompt_cache_write_extra_usd) {
      told.push(`the provider's prompt cache: reads saved ${dollars(t.prompt_cache_read_saved_usd ?? 0)}, writes cost ${dollars(t.prompt_cache_write_extra_usd ?? 0)} more (both are inside the cost)`);
    }
    $("parts").textContent = told.join(" · ");
  }

  /** What thirty days come to at the rate of now: of all requests, so nothing where the view is of some. */
  month(projection) {
    $("projection").hidden = !projection;
    if (!projection) return;
    const p = projection, days = p.from_s / 86400;
    const span = days >= 1.5 ? `${days.toFixed(0)} days` : `${Math.round(p.from_s / 3600)} hours`;
    $("projection").replaceChildren(
      `At the rate of the last ${span}, thirty days come to `, h("b", {}, dollars(p.cost_usd)), ` for ${count(p.requests)} requests; `,
      p.saved_usd < 0 ? "lost: " : "saved: ", h(`b.${p.saved_usd < 0 ? "loss" : "gain"}`, {}, dollars(Math.abs(p.saved_usd))),
      ` of ${dollars(p.baseline_usd)}.`, p.unknown_cost ? ` ${count(p.unknown_cost)} of unknown cost are not in it.` : "");
  }

  /** The charts as a table of their sums: the text alternative. It is filled when it is opened. */
  table() {
    const { times, series, step_s: stepS } = this.figures;
    const sum = (key, at) => series.reduce((all, one) => all + (one.points[key][at] ?? 0), 0);
    const rows = times.map((time, at) => [time, sum("requests", at), at]).filter(([, requests]) => requests);
    $("figures-rows").replaceChildren(...rows.map(([time, requests, at]) => {
      const hits = sum("cache_hits", at) + sum("cache_coalesced", at), lookups = hits + sum("cache_misses", at);
      return h("tr", {}, h("th", { scope: "row" }, moment(time, stepS >= 86400)), h("td.n", {}, dollars(sum("cost_usd", at))), h("td.n", {}, dollars(sum("saved_usd", at))),
        h("td.n", {}, count(requests)), h("td.n", {}, count(sum("errors", at))), h("td.n", {}, lookups ? percent(hits / lookups) : "–"));
    }));
  }
}
