// The list: the newest requests that match, older ones by keyset pages, new ones as they finish.

import { address, scoped, tracePath } from "./address.js";
import { $, ask, clock, count, dollars, h, seconds } from "./dom.js";
import { lane, outcome } from "./detail.js";

const MAX_ROWS = 2000; // in the page; older ones are a click away
const MAX_WAITING = 2000; // held back while the tail is paused
const PAGE = 100;
const idOf = (trace) => `${trace.trace_id} ${trace.request_id ?? ""}`;

export class List {
  /** `actions`: `filterBy(name, value)`, `open(trace)`, `filled(fleet)` after a load, `grew()` after new requests,
   * `missed()` where the tail lacks some. */
  constructor(actions) {
    Object.assign(this, {
      actions, rows: [], known: new Set(), next: null, at: -1, isLive: true, waiting: [], tail: null, arrived: [],
      due: null, hasLost: false, isLoading: false, loaded: null, marked: null });
  }

  /** The newest that match. The tail is opened first, so that what finishes in between is in one of the two. */
  load() {
    const loading = this.fill();
    this.loaded = loading.catch(() => {});
    return loading;
  }

  async fill() {
    this.tail?.close();
    this.isLoading = true;
    this.arrived = [];
    const tail = await this.follow();
    const { traces, next, fleet } = await ask(`/traces?${scoped({ limit: PAGE })}`);
    if (this.tail !== tail) return; // another view was asked for meanwhile
    Object.assign(this, {
      rows: traces, next, at: -1, waiting: [], hasLost: false, known: new Set(traces.map(idOf)), isLoading: false });
    $("rows").replaceChildren(...traces.map((trace) => this.rowOf(trace)));
    this.after();
    this.actions.filled(fleet);
    this.admit();
  }

  /** Show nothing until the next load is there. */
  clear() {
    Object.assign(this, { rows: [], next: null, at: -1, waiting: [] });
    $("rows").replaceChildren();
    this.after();
    $("empty").hidden = true;
  }

  /** The next page; false when there is none. */
  async older() {
    if (!this.next || this.isAsking) return false;
    this.isAsking = true;
    const tail = this.tail;
    try {
      const { traces, next } = await ask(`/traces?${scoped({ limit: PAGE, before: this.next })}`);
      if (this.tail !== tail) return false; // another view was asked for meanwhile
      const more = traces.filter((trace) => !this.known.has(idOf(trace)));
      more.forEach((trace) => this.known.add(idOf(trace)));
      this.rows.push(...more);
      this.next = next;
      $("rows").append(...more.map((trace) => this.rowOf(trace)));
    } finally {
      this.isAsking = false;
    }
    this.after();
    return true;
  }

  /** Listen to what finishes from now on; done when the router listens too, or says that it will not. */
  follow() {
    const tail = new EventSource(`/events?${scoped()}`);
    this.tail = tail;
    tail.addEventListener("trace", (event) => {
      if (this.tail !== tail) return;
      this.arrived.push(JSON.parse(event.data));
      this.due ??= setTimeout(() => { this.due = null; this.admit(); }, 100); // many at once are one change of the page
    });
    tail.addEventListener("gap", () => { if (this.tail === tail) this.actions.missed(); });
    tail.addEventListener("open", () => document.body.classList.remove("offline"));
    tail.addEventListener("error", () => document.body.classList.toggle("offline", this.tail === tail));
    return new Promise((done) => {
      for (const name of ["ready", "error"]) tail.addEventListener(name, () => done(tail), { once: true });
      setTimeout(() => done(tail), 2000); });
  }

  admit() {
    if (this.isLoading) return;
    const traces = this.arrived.splice(0).filter((trace) => !this.known.has(idOf(trace))).reverse();
    traces.forEach((trace) => this.known.add(idOf(trace)));
    if (!traces.length) return;
    if (!this.isLive) {
      this.waiting.unshift(...traces);
      this.hasLost ||= this.waiting.length > MAX_WAITING;
      this.waiting.length = Math.min(this.waiting.length, MAX_WAITING);
    } else this.insert(traces);
    this.after();
    this.actions.grew();
  }

  insert(traces) {
    this.rows.unshift(...traces);
    if (this.at >= 0) this.at += traces.length;
    const rows = traces.map((trace) => this.rowOf(trace));
    rows.forEach((row) => row.classList.add("new"));
    $("rows").prepend(...rows);
    const gone = this.rows.splice(MAX_ROWS);
    gone.forEach((trace) => { this.known.delete(idOf(trace)); $("rows").lastElementChild.remove(); });
    if (gone.length) this.next = markOf(this.rows.at(-1));
  }

  pause(isLive = !this.isLive) {
    this.isLive = isLive;
    $("live").setAttribute("aria-pressed", String(isLive));
    $("live").lastElementChild.textContent = isLive ? "Live" : "Paused";
    if (isLive && this.hasLost) return this.load(); // more than could be held back: there would be a gap
    if (isLive) this.insert(this.waiting.splice(0));
    return this.after();
  }

  after() {
    $("empty").hidden = this.rows.length > 0;
    $("older").hidden = !this.next;
    $("fresh").hidden = this.waiting.length === 0;
    $("fresh").textContent = `${count(this.waiting.length)} new`;
  }

  /** Mark the row of a trace as the one that is looked at; it need not be in the list. */
  select(id, isFocused) {
    this.at = this.rows.findIndex((row) => row.trace_id === id || row.request_id === id);
    for (const row of $("rows").querySelectorAll("tr.at")) { row.classList.remove("at"); row.removeAttribute("aria-current"); }
    const row = $("rows").children[this.at];
    row?.classList.add("at");
    row?.setAttribute("aria-current", "true");
    row?.scrollIntoView({ block: "nearest" });
    if (isFocused) row?.focus({ preventScroll: true });
  }

  /** The id that opens this trace: its own request's, where the list has several of one trace id. */
  idFor(trace) {
    const isShared = this.rows.some((row) => row.trace_id === trace.trace_id && row.request_id !== trace.request_id);
    return (isShared && trace.request_id) || trace.trace_id;
  }

  /** Keep a trace in mind, to compare another with it; null: none. */
  mark(trace) {
    this.marked = trace && idOf(trace);
    this.rows.forEach((row, at) => $("rows").children[at].classList.toggle("marked", idOf(row) === this.marked));
  }

  /** The trace `by` steps down the list, across pages; null at an end. */
  async stepped(by) {
    await this.loaded; // a key may come before the list does
    const to = this.at + by;
    if (to >= this.rows.length) await this.older();
    return this.rows[to] ?? null;
  }

  rowOf(trace) {
    // Not a stop of the Tab key: a hundred rows of six would bury the page. One request's panel has the same as buttons.
    const cell = (name, value, shown = value) => value
      ? h("button.cell", {
        type: "button", tabindex: "-1", title: `Only ${name} ${value}`,
        onclick: (event) => { event.stopPropagation(); this.actions.filterBy(name, value); } },
        shown)
      : "–";
    const usage = trace.usage;
    const prompt = usage
      ? usage.input_tokens + usage.cache_read_input_tokens + usage.cache_write_5m + usage.cache_write_1h : null;
    const isSwap = trace.model_sent && trace.model_asked !== trace.model_sent;
    const isHit = trace.cache === "hit" || trace.cache === "coalesced";
    return h(idOf(trace) === this.marked ? "tr.marked" : "tr", { tabindex: "-1", "data-id": trace.trace_id, onclick: () => this.actions.open(trace) },
      h("td.time", {}, h("a", {
        href: address({ with: "" }, tracePath(trace.trace_id)),
        onclick: (event) => {
          if (event.metaKey || event.ctrlKey) event.stopPropagation(); else event.preventDefault();
        } }, clock(trace.started_at)), trace.pod && h("small.pod", { title: `on ${trace.pod}` }, ` ${trace.pod}`)),
      h("td.rule", {}, trace.rule
        ? cell("rule", trace.rule)
        : h("span.mute", {}, trace.endpoint === "messages" ? "–" : trace.endpoint || "–")),
      h("td.task", {}, cell("task", trace.task)),
      h("td.model", {},
        isSwap && h("span.asked", { title: `${trace.model_asked} was asked for` },
          (trace.model_asked || "–").replace(/^claude-/, "")),
        isSwap && h("b", {}, "→"),
        trace.model_sent ? cell("model", trace.model_sent) : h("span.mute", {}, trace.model_asked || "–"),
        " ", trace.lane && cell("lane", trace.lane, lane(trace.lane))),
      h("td.cache", { title: trace.cache_reason || null },
        h(`span.${isHit ? "hit" : "plain"}`, {}, cell("cache", trace.cache))),
      h("td.outcome-cell", {}, cell("outcome", trace.outcome, outcome(trace)),
        trace.attempts.length > 1
          && h("span.retries", { title: `${trace.attempts.length} attempts` }, `×${trace.attempts.length}`)),
      h("td.n.tokens-cell", {}, usage ? `${count(prompt)} + ${count(usage.output_tokens)}` : "–"),
      h("td.n.ttft", {}, seconds(trace.ttft_s)),
      h("td.n.took", {}, seconds(trace.duration_s)),
      h("td.n.cost", {}, trace.cost_usd === null ? "–" : dollars(trace.cost_usd)),
      h(`td.n.saved${trace.saved_usd > 0 ? ".gain" : trace.saved_usd < 0 ? ".loss" : ""}`, {},
        trace.saved_usd === null ? "–" : dollars(trace.saved_usd)));
  }
}

/** The mark of the page after this trace. Its time has microseconds, so it asks from the next one on: what is there already is known. */
function markOf(trace) {
  if (trace.mark) return trace.mark; // of the fleet's stream
  const [whole, micros = "0"] = trace.started_at.replace("Z", "").split(".");
  return `${(BigInt(Date.parse(`${whole}Z`)) * 1000n + BigInt(micros.padEnd(6, "0")) + 1n) * 1000n}.`;
}
