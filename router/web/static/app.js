// The trace page: the address is the state, `List` and `Overview` are the two views of it, a panel shows one request.

import { FILTERS, address, filters, group, isFleet, isOverview, mateId, openId, params, query, tracePath } from "./address.js";
import { showPair } from "./compare.js";
import { $, ask, clock, count, h } from "./dom.js";
import { showTrace } from "./detail.js";
import { List } from "./list.js";
import { Overview, showTotals } from "./overview.js";

const SPANS = [
  ["15m", "15 minutes"], ["1h", "1 hour"], ["24h", "24 hours"], ["7d", "7 days"], ["30d", "30 days"], ["", "all time"]];
const REFRESH_MS = 2000; // between two looks at the figures while requests come in

const state = { open: null, mate: null, trace: null, marked: null, asked: 0, due: null, from: "/" };
const list = new List({
  filterBy,
  open: (trace) => open(list.idFor(trace)),
  filled: (fleet) => { told(fleet); if (state.open !== null) list.select(state.open); },
  missed: () => {
    const note = " More came than a live list takes: some are missing here. Reload to see the newest.";
    if (!$("fleet-note").textContent.endsWith(note)) $("fleet-note").append(note); // a gap may come each second
  },
  grew: () => {
    state.due ??= setTimeout(() => { state.due = null; figures(state.asked).catch(problem); }, REFRESH_MS);
  } });
const overview = new Overview({
  filterBy,
  between: (since, until) => { go({ since, until }, "/"); view(); reload(); },
  groupBy: (name) => { go({ by: name === "rule" ? "" : name }); figures(state.asked).catch(problem); },
});

function go(change, path) {
  history.pushState(null, "", address(change, path));
}

const base = () => (isOverview() || (openId() !== null && state.from === "/overview") ? "/overview" : "/");

function filterBy(name, value) {
  const to = base();
  close(false);
  go({ [name]: value }, to);
  reload();
}

async function figures(asked) {
  if (isFleet()) return;
  const since = params().get("since");
  const found = await ask(`/figures?${query({ by: group(), ...(since ? { since } : {}) })}`);
  if (asked !== state.asked) return; // a newer question is under way
  showTotals(found);
  overview.show(found);
}

async function reload() {
  const asked = ++state.asked;
  problem(null);
  controls();
  await Promise.all([list.load(), figures(asked)].map(
    (part) => part.catch((error) => { if (asked === state.asked) problem(error); })));
}

/** What the list of the fleet is, and is not. */
function told(fleet) {
  $("fleet-note").hidden = !fleet;
  if (!fleet) return;
  const isFull = fleet.held >= fleet.most;
  $("fleet-note").textContent = (fleet.held === 0
    ? "No router has written a request to Redis yet."
    : `The last ${count(fleet.held)} requests of all routers, ${isFull ? "as many as Redis keeps, " : ""}since ${clock(fleet.oldest_at)}.`)
    + " Older ones are on the routers' own pages and at your collector; figures over time and items of batches are not here."
    + (fleet.is_cut ? " The search took too long and stopped before the end." : "");
}

/** Which of the two views is shown. */
function view() {
  const isFigures = base() === "/overview";
  $("overview").hidden = !isFigures;
  $("requests").hidden = isFigures;
  const ofFleet = isFleet();
  if (!ofFleet) told(null);
  $("totals").hidden = ofFleet;
  if (ofFleet) $("aside-note").hidden = true;
  document.querySelector(".export").hidden = ofFleet;
  $("of-router").setAttribute("aria-pressed", String(!ofFleet));
  $("of-fleet").setAttribute("aria-pressed", String(ofFleet));
  for (const [id, is] of [["to-overview", isFigures], ["to-requests", !isFigures]])
    is ? $(id).setAttribute("aria-current", "page") : $(id).removeAttribute("aria-current");
}

// One request

/** One request in the panel, or two of them (`mate`: the id of the other). */
async function open(id, isStep = true, mate = null) {
  if (openId() === null) state.from = isOverview() ? "/overview" : "/";
  Object.assign(state, { open: id, mate, trace: null });
  const isWanted = () => state.open === id && state.mate === mate;
  if (isStep) go({ with: mate }, tracePath(id));
  list.select(id);
  document.body.classList.add("with-panel");
  document.body.classList.toggle("with-pair", mate !== null);
  const actions = { close, step, filterBy, open, compare, isMarked: (trace) => isSame(trace, state.marked) };
  const trace = mate === null
    ? await showTrace($("panel"), id, actions, isWanted) : await showPair($("panel"), id, mate, actions, isWanted);
  if (!isWanted()) return;
  state.trace = trace;
  if (isStep) $("panel").focus({ preventScroll: true });
}

const isSame = (one, other) => one.trace_id === other?.trace_id && one.request_id === other?.request_id;

/** The first request is kept in mind; another one is shown beside it; the same again is let go. */
function compare(trace) {
  const marked = state.marked;
  if (!trace) return;
  if (!marked || isSame(trace, marked)) return mark(marked ? null : trace);
  mark(null);
  // Requests that share a trace id are told apart by their own.
  const [one, other] = [marked, trace].map((each) =>
    marked.trace_id === trace.trace_id && each.request_id ? each.request_id : each.trace_id);
  open(one, true, other).catch(problem);
}

function mark(trace) {
  state.marked = trace;
  list.mark(trace);
  $("marked").hidden = !trace;
  if (trace) $("marked-name").textContent = `${clock(trace.started_at)} ${trace.model_sent || trace.model_asked || trace.path}`;
  $("panel").querySelector("[data-compare]")?.setAttribute("aria-pressed", String(Boolean(trace)));
}

function close(isStep = true) {
  if (state.open === null) return;
  const [id, to] = [state.open, base()];
  Object.assign(state, { open: null, mate: null, trace: null });
  $("panel").hidden = true;
  $("panel").replaceChildren();
  document.body.classList.remove("with-panel", "with-pair");
  if (isStep) go({}, to);
  list.select(id, true);
}

async function step(by) {
  const trace = await list.stepped(by);
  if (!trace) return;
  if (state.open !== null) await open(list.idFor(trace));
  else list.select(list.idFor(trace), true);
}

// Filters

function controls() {
  view();
  const since = params().get("since") ?? "";
  const spans = SPANS.some(([value]) => value === since) ? SPANS : [[since, `since ${since}`], ...SPANS];
  $("since").replaceChildren(...spans.map(([value, name]) => h("option", { value, selected: value === since }, name)));
  $("chips").replaceChildren(...filters().map(([name, value]) =>
    h("button.chip", {
      type: "button", title: "Remove this filter", "aria-label": `Remove the filter ${name}: ${value}`,
      onclick: () => filterBy(name, "") },
      `${name}: ${value} `, h("b", {}, "✕"))));
  for (const kind of ["ndjson", "csv"]) $(`export-${kind}`).href = `/export?${query({ format: kind })}`;
  $("to-requests").href = address({}, "/");
  $("to-overview").href = address({ fleet: "" }, "/overview");
}

/** `NAME:VALUE` words filter, in quotes where a value has blanks; an id opens its request. */
function search(text) {
  const change = {};
  for (const word of text.match(/[a-z_]+:"[^"]*"|\S+/g) ?? []) {
    const [name, ...rest] = word.split(":");
    if (rest.length && FILTERS.includes(name)) change[name] = rest.join(":").replace(/^"(.*)"$/, "$1");
    else if (/^[0-9a-f]{8,32}$/.test(word) || word.startsWith("req_")) { $("search").value = ""; return open(word); }
    else return problem(new Error(`“${word}” is neither NAME:VALUE (${FILTERS.join(", ")}) nor an id`));
  }
  $("search").value = "";
  const to = base();
  close(false);
  go(change, to);
  return reload();
}

function problem(error) {
  $("problem").hidden = !error;
  $("problem").textContent = error?.message ?? "";
}

// Keys and start

const KEYS = {
  j: () => step(1).catch(problem), k: () => step(-1).catch(problem),
  "/": () => $("search").focus(), p: () => list.pause(), "?": () => $("help").showModal(),
  c: () => { if (state.mate === null) compare(state.open === null ? list.rows[list.at] : state.trace); },
  o: () => turn("/overview"), r: () => turn("/"),
};

function turn(path) {
  const was = isFleet();
  close(false);
  go(path === "/overview" ? { fleet: "" } : {}, path);
  if (was !== isFleet()) reload(); else controls();
}

function look(isOfFleet) {
  close(false);
  go({ fleet: isOfFleet ? "1" : "" }, "/");
  list.clear(); // what is there is somebody else's, should there be no answer
  reload();
}

document.addEventListener("keydown", (event) => {
  const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.metaKey || event.ctrlKey || event.altKey || $("help").open) return;
  if (event.key === "Escape") return isTyping ? event.target.blur() : close();
  if (isTyping) return;
  if (event.key === "Enter" && list.rows[list.at] && state.open === null
    && (event.target === document.body || event.target.tagName === "TR")) {
    event.preventDefault();
    open(list.idFor(list.rows[list.at]));
  } else if (KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});
$("filters").addEventListener("submit", (event) => { event.preventDefault(); search($("search").value); });
$("since").addEventListener("change", (event) => { go({ since: event.target.value, until: "" }); reload(); });
$("live").addEventListener("click", () => list.pause());
$("of-router").addEventListener("click", () => look(false));
$("of-fleet").addEventListener("click", () => look(true));
$("fresh").addEventListener("click", () => list.pause(true));
$("unmark").addEventListener("click", () => mark(null));
$("older").addEventListener("click", () => list.older().catch(problem));
$("help-button").addEventListener("click", () => $("help").showModal());
$("as-table").addEventListener("toggle", () => { if ($("as-table").open && overview.figures) overview.table(); });
for (const id of ["to-overview", "to-requests"]) {
  $(id).addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    turn(id === "to-overview" ? "/overview" : "/");
  });
}
document.querySelector("[data-home]").addEventListener("click", (event) => {
  event.preventDefault(); close(false); history.pushState(null, "", "/"); reload(); });
addEventListener("popstate", () => { route(); reload(); });

function route() {
  const id = openId();
  if (id !== null) open(id, false, mateId()).catch(problem);
  else close(false);
}

ask("/policy").then((status) => {
  $("revision").textContent = status.revision
    ? `policy ${String(status.revision).slice(0, 12)}${status.is_current === false ? " · the folder on disk is refused" : ""}`
    : "";
  $("revision").title = status.last_error || (status.warnings ?? []).join("\n");
}).catch(() => {});
ask("/fleet").then((fleet) => { $("scope").hidden = fleet.pod === null && !isFleet(); }).catch(() => {});
route();
reload();
