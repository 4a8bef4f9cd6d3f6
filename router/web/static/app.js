// The trace page: the query string is the state, the list is the newest requests that match it, a panel shows one.

import { $, ask, clock, count, dollars, h, percent, seconds } from "./dom.js";
import { lane, outcome, showTrace } from "./detail.js";

const FILTERS = ["rule", "task", "model", "lane", "outcome", "cache", "policy", "tenant", "key", "endpoint", "request_id", "min_cost_usd", "until"];
const SPANS = [["15m", "15 minutes"], ["1h", "1 hour"], ["24h", "24 hours"], ["7d", "7 days"], ["", "all time"]];
const GROUPS = ["rule", "model", "task", "key", "day", "policy", "lane"];
const MAX_ROWS = 2000; // in the page; older ones are a click away

const state = { rows: [], next: null, at: -1, open: null, isLive: true, waiting: [], tail: null, asked: 0 };

const params = () => new URLSearchParams(location.search);
const filters = () => { const p = params(); return [...p].filter(([name, value]) => FILTERS.includes(name) && value); };

function query(extra = {}) {
  const p = new URLSearchParams(filters());
  const since = params().get("since");
  if (since) p.set("since", since);
  for (const [name, value] of Object.entries(extra)) p.set(name, value);
  return p;
}

function go(change, path = location.pathname) {
  const p = params();
  for (const [name, value] of Object.entries(change)) value ? p.set(name, value) : p.delete(name);
  history.pushState(null, "", path + (p.size ? `?${p}` : ""));
}

function filterBy(name, value) {
  go({ [name]: value }, "/");
  closePanel(false);
  reload();
}

// Totals and groups

async function figures() {
  const by = GROUPS.includes(params().get("by")) ? params().get("by") : "rule";
  const since = params().get("since");
  const p = new URLSearchParams({ by });
  if (since) p.set("since", since);
  const { rows, totals } = await ask(`/report?${p}`);
  const card = (name, value, note, kind = "") => h(`div.card${kind}`, {}, h("span", {}, name), h("strong", {}, value), h("small", {}, note));
  const unknown = totals.cost_without_baseline_usd ? `+ ${dollars(totals.cost_without_baseline_usd)} without a baseline (${count(totals.unknown_cost)} unknown)`
    : totals.unknown_cost ? `+ ${count(totals.unknown_cost)} of unknown price` : "every price known";
  $("totals").replaceChildren(
    card("Saved", dollars(totals.saved_usd), totals.saved_share === null ? "against the model asked for" : `${percent(totals.saved_share)} of ${dollars(totals.baseline_usd)}`, totals.saved_usd < 0 ? ".loss" : ".gain"),
    card("Cost", dollars(totals.cost_usd), unknown),
    card("Requests", count(totals.requests), totals.not_ok ? `${count(totals.not_ok)} not ok` : "all ok"),
    card("Cache hits", percent(totals.hit_rate), `${count(totals.cache_hits + totals.cache_coalesced)} of ${count(totals.cache_hits + totals.cache_coalesced + totals.cache_misses)} look-ups`),
    card("First token", seconds(totals.ttft_p50_s), `p95 ${seconds(totals.ttft_p95_s)}`),
    card("Whole answer", seconds(totals.duration_p50_s), `p95 ${seconds(totals.duration_p95_s)}`),
  );
  $("by").replaceChildren(...GROUPS.map((name) =>
    h("button", { type: "button", role: "tab", "aria-selected": String(name === by), onclick: () => { go({ by: name === "rule" ? "" : name }); figures().catch(problem); } }, name)));
  const most = Math.max(...rows.map((row) => Math.max(row.baseline_usd, row.cost_usd)), 1e-15);
  $("bars").replaceChildren(...rows.slice(0, 12).map((row) => {
    const name = row[by];
    const filter = FILTERS.includes(by) && name ? () => filterBy(by, name) : null;
    return h("div.bar-row", {},
      filter ? h("button.name", { type: "button", onclick: filter, title: `Only ${name}` }, name) : h("span.name", {}, name || "–"),
      h("div.double", { title: `baseline ${dollars(row.baseline_usd)}` },
        h("i.baseline", { vars: { at: `${(row.baseline_usd / most) * 100}%` } }), h("i.cost", { vars: { at: `${(row.cost_usd / most) * 100}%` } })),
      h("span.n", {}, dollars(row.cost_usd)),
      h(`span.n.${row.saved_usd < 0 ? "loss" : "gain"}`, {}, row.saved_share === null ? "" : `${row.saved_usd < 0 ? "+" : "−"}${percent(Math.abs(row.saved_share))}`),
      h("span.n.mute", {}, `${count(row.requests)} req`));
  }));
}

// The list

function rowOf(trace) {
  const cell = (name, value, shown = value) => value
    ? h("button.cell", { type: "button", title: `Only ${name} ${value}`, onclick: (event) => { event.stopPropagation(); filterBy(name, value); } }, shown)
    : "–";
  const usage = trace.usage;
  const prompt = usage ? usage.input_tokens + usage.cache_read_input_tokens + usage.cache_write_5m + usage.cache_write_1h : null;
  const isSwap = trace.model_asked !== trace.model_sent;
  const row = h("tr", { tabindex: "-1", "data-id": trace.trace_id, onclick: () => select(trace.trace_id, true) },
    h("td.time", {}, h("a", { href: `/t/${trace.trace_id}${location.search}`, onclick: (event) => { if (!event.metaKey && !event.ctrlKey) event.preventDefault(); } }, clock(trace.started_at))),
    h("td.rule", {}, cell("rule", trace.rule)),
    h("td.task", {}, cell("task", trace.task)),
    h("td.model", {}, isSwap && h("span.asked", {}, trace.model_asked || "–"), isSwap && h("b", {}, "→"), cell("model", trace.model_sent), " ", cell("lane", trace.lane, lane(trace.lane))),
    h("td.cache", {}, h(`span.${trace.cache === "hit" || trace.cache === "coalesced" ? "hit" : "plain"}`, {}, cell("cache", trace.cache))),
    h("td.outcome-cell", {}, cell("outcome", trace.outcome, outcome(trace)), trace.attempts.length > 1 && h("span.retries", { title: `${trace.attempts.length} attempts` }, `×${trace.attempts.length}`)),
    h("td.n.tokens-cell", {}, usage ? `${count(prompt)} + ${count(usage.output_tokens)}` : "–"),
    h("td.n.ttft", {}, seconds(trace.ttft_s)),
    h("td.n.took", {}, seconds(trace.duration_s)),
    h("td.n.cost", {}, trace.cost_usd === null ? "–" : dollars(trace.cost_usd)),
    h(`td.n.saved${trace.saved_usd > 0 ? ".gain" : trace.saved_usd < 0 ? ".loss" : ""}`, {}, trace.saved_usd === null ? "–" : dollars(trace.saved_usd)));
  return row;
}

async function reload() {
  const asked = ++state.asked;
  problem(null);
  state.tail?.close();
  controls();
  try {
    const { traces, next } = await ask(`/traces?${query({ limit: 100 })}`);
    if (asked !== state.asked) return; // a newer question is under way
    Object.assign(state, { rows: traces, next, at: -1, waiting: [] });
    $("rows").replaceChildren(...traces.map(rowOf));
    follow();
    after();
    await figures();
  } catch (error) {
    problem(error);
  }
}

async function older() {
  if (!state.next) return;
  const { traces, next } = await ask(`/traces?${query({ limit: 100, before: state.next })}`);
  state.rows.push(...traces);
  state.next = next;
  $("rows").append(...traces.map(rowOf));
  after();
}

function follow() {
  const tail = new EventSource(`/events?${query()}`);
  state.tail = tail;
  let due = null;
  tail.addEventListener("trace", (event) => {
    const trace = JSON.parse(event.data);
    if (state.rows.some((row) => row.trace_id === trace.trace_id)) return;
    if (!state.isLive) {
      state.waiting.unshift(trace);
      return after();
    }
    admit([trace]);
    due ??= setTimeout(() => { due = null; figures().catch(problem); }, 2000);
  });
  tail.addEventListener("open", () => document.body.classList.remove("offline"));
  tail.addEventListener("error", () => document.body.classList.add("offline"));
}

function admit(traces) {
  state.rows.unshift(...traces);
  if (state.at >= 0) state.at += traces.length;
  const rows = traces.map(rowOf);
  rows.forEach((row) => row.classList.add("new"));
  $("rows").prepend(...rows);
  while (state.rows.length > MAX_ROWS) {
    state.rows.pop();
    $("rows").lastElementChild.remove();
    state.next = null;
  }
  after();
}

function after() {
  $("empty").hidden = state.rows.length > 0;
  $("older").hidden = !state.next;
  $("fresh").hidden = state.waiting.length === 0;
  $("fresh").textContent = `${count(state.waiting.length)} new`;
}

function pause(isLive = !state.isLive) {
  state.isLive = isLive;
  $("live").setAttribute("aria-pressed", String(isLive));
  $("live").lastElementChild.textContent = isLive ? "Live" : "Paused";
  if (isLive) admit(state.waiting.splice(0));
}

// One trace

function select(id, isOpen) {
  state.at = state.rows.findIndex((row) => row.trace_id === id);
  for (const row of document.querySelectorAll("tr.at")) row.classList.remove("at");
  const row = [...$("rows").children].find((candidate) => candidate.dataset.id === id);
  row?.classList.add("at");
  row?.scrollIntoView({ block: "nearest" });
  if (isOpen) {
    go({}, `/t/${id}`);
    openPanel(id);
  }
}

function step(by) {
  const to = Math.min(state.rows.length - 1, Math.max(0, state.at + by));
  if (state.rows[to]) select(state.rows[to].trace_id, state.open !== null);
}

async function openPanel(id) {
  state.open = id;
  document.body.classList.add("with-panel");
  await showTrace($("panel"), id, () => closePanel());
}

function closePanel(isStep = true) {
  if (state.open === null) return;
  state.open = null;
  $("panel").hidden = true;
  document.body.classList.remove("with-panel");
  if (isStep) go({}, "/");
}

// Filters

function controls() {
  const since = params().get("since") ?? "";
  const spans = SPANS.some(([value]) => value === since) ? SPANS : [[since, since], ...SPANS];
  $("since").replaceChildren(...spans.map(([value, name]) => h("option", { value, selected: value === since }, name)));
  $("chips").replaceChildren(...filters().map(([name, value]) =>
    h("button.chip", { type: "button", title: "Remove this filter", onclick: () => filterBy(name, "") }, `${name}: ${value} `, h("b", {}, "✕"))));
}

function search(text) {
  const words = text.trim().split(/\s+/).filter(Boolean);
  const change = {};
  for (const word of words) {
    const [name, ...rest] = word.split(":");
    if (rest.length && FILTERS.includes(name)) change[name] = rest.join(":");
    else if (/^[0-9a-f]{8,32}$/.test(word) || word.startsWith("req_")) return select(word, true);
    else return problem(new Error(`“${word}” is neither NAME:VALUE (${FILTERS.join(", ")}) nor an id`));
  }
  go(change, "/");
  $("search").value = "";
  return reload();
}

function problem(error) {
  $("problem").hidden = !error;
  $("problem").textContent = error?.message ?? "";
}

// Keys and start

document.addEventListener("keydown", (event) => {
  const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.metaKey || event.ctrlKey || event.altKey) return;
  if (event.key === "Escape") return isTyping ? event.target.blur() : closePanel();
  if (isTyping || $("help").open) return;
  const keys = { j: () => step(1), k: () => step(-1), "/": () => $("search").focus(), p: () => pause(), "?": () => $("help").showModal(),
    Enter: () => { if (event.target === document.body && state.rows[state.at]) select(state.rows[state.at].trace_id, true); } };
  if (keys[event.key]) {
    if (event.key !== "Enter") event.preventDefault();
    keys[event.key]();
  }
});
$("filters").addEventListener("submit", (event) => { event.preventDefault(); search($("search").value); });
$("since").addEventListener("change", (event) => { go({ since: event.target.value }); reload(); });
$("live").addEventListener("click", () => pause());
$("fresh").addEventListener("click", () => pause(true));
$("older").addEventListener("click", () => older().catch(problem));
$("help-button").addEventListener("click", () => $("help").showModal());
document.querySelector("[data-home]").addEventListener("click", (event) => { event.preventDefault(); history.pushState(null, "", "/"); closePanel(false); reload(); });
addEventListener("popstate", () => { route(); reload(); });

function route() {
  const found = location.pathname.match(/^\/t\/(.+)$/);
  if (found) openPanel(decodeURIComponent(found[1]));
  else closePanel(false);
}

ask("/policy").then((status) => {
  $("revision").textContent = status.revision ? `policy ${String(status.revision).slice(0, 12)}${status.is_current ? "" : " · the folder on disk is refused"}` : "";
  $("revision").title = status.last_error || (status.warnings ?? []).join("\n");
}).catch(() => {});
route();
reload();
