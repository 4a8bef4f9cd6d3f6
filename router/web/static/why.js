// Why a request went where it went, and where it would go today: rules in order, each with the clause that failed.

import { ask, count, dollars, h, hue, marked, percent } from "./dom.js";

const MARKS = {
  failed: ["✗", "did not match"], matched: ["✓", "matched"], unknown: ["?", "cannot be said"],
  "not reached": ["·", "not reached"], more: ["→", "then"], out: ["⊘", "kept out"] };

export function lane(name) {
  return h("span.lane", { vars: { hue: hue(name) } }, name || "–");
}

export function section(title, ...content) {
  return h("section.block", {}, h("h3", {}, title), ...content);
}

/** One sentence of the record as a step: which rule, how it ended, and in what words. */
function step(sentence) {
  const found = sentence.match(/^rule `([^`]*)`: (.*)$/s);
  if (found) return { name: found[1], outcome: found[2].startsWith("matched") ? "matched" : "failed", says: found[2] };
  if (sentence.startsWith("no rule matched")) return { name: "otherwise", outcome: "matched", says: sentence };
  return { name: "", outcome: sentence.startsWith("lane `") && sentence.includes("kept out") ? "out" : "more", says: sentence };
}

function steps(rules) {
  return h("ol.rules", {}, rules.map(({ name, outcome, says, line }) => {
    const [mark, words] = MARKS[outcome] ?? MARKS.more;
    return h(`li.${outcome.replace(" ", "-")}`, {}, h("b.mark", { title: words, "aria-label": words }, mark),
      h("span", {}, name && h("strong", {}, name), name && says && " ",
        says && h("span.says", {}, marked(says)), line > 0 && h("small", {}, ` line ${line}`)));
  }));
}

export function why(trace, filter) {
  return section("Why this route",
    h("p.quietly", {},
      "policy ", trace.policy ? filter("policy", trace.policy) : "–", h("code", {}, `@${trace.revision}`),
      trace.rule && " · rule ", trace.rule && filter("rule", trace.rule)),
    trace.why.length > 0 && steps(trace.why.map(step)),
    trace.edits.length > 0 && h("p", {}, "edits to the request: ", trace.edits.join(", ")),
    labels(trace.labels),
    conversation(trace.affinity),
  );
}

function labels(given) {
  const entries = Object.entries(given ?? {});
  if (!entries.length) return null;
  const name = (text) => text.replaceAll("_", " ");
  return h("div.labels", {}, entries.map(([key, value]) => {
    if (typeof value === "number")
      return h("div.label", {}, h("span", {}, name(key)),
        h("i.meter", { vars: { at: `${Math.min(1, Math.max(0, value)) * 100}%` } }), h("b", {}, value.toFixed(2)));
    if (value && typeof value === "object")
      return h("div.label.whole", {}, h("span", {}, name(key)),
        h("b.wide", {}, Object.entries(value).map(([place, added]) =>
          `${place} ${typeof added === "number" ? `${added < 0 ? "−" : "+"}${Math.abs(added)}` : added}`).join(", ")));
    return h("div.label", {}, h("span", {}, name(key)), h("b.wide", {}, String(value)));
  }));
}

function conversation(affinity) {
  if (!affinity) return null;
  const cost = affinity.switch;
  const told = h("p.quietly", {},
    "conversation ", affinity.kept ? "kept" : "not kept", ": bound to ", lane(affinity.lane),
    ` with ${count(affinity.prefix_tokens)} tokens so far`,
    cost && (cost.is_warm ? ", its prompt cache warm" : ", its prompt cache cold"));
  if (!cost) return told;
  const earned = cost.turns_to_earn === null
    ? `not earned back within ${cost.turns_allowed} turns` : `earned back by turn ${cost.turns_to_earn}`;
  return h("div.affinity", {}, told,
    h("table.small", { "aria-label": "What a switch of model would cost" },
      h("thead", {}, h("tr", {},
        h("th", { scope: "col" }, "estimate"), h("th.n", { scope: "col" }, "next turn"),
        h("th.n", { scope: "col" }, "each later"))),
      h("tbody", {},
        h("tr", {}, h("th", { scope: "row" }, `stay on ${cost.from_model}`),
          h("td.n", {}, dollars(cost.stay_first_usd)), h("td.n", {}, dollars(cost.stay_later_usd))),
        h("tr", {}, h("th", { scope: "row" }, `switch to ${cost.to_model}`),
          h("td.n", {}, dollars(cost.switch_first_usd)), h("td.n", {}, dollars(cost.switch_later_usd))))),
    h("p.quietly", {}, earned));
}

/** The same request under the policy now in force: asked for when it is shown, so that the trace itself is there at once. */
export function now(trace) {
  const room = section("The same request today", h("p.quietly", {}, "asking …"));
  if (trace.endpoint !== "messages" || !trace.policy) return null;
  Promise.all([ask(`/traces/${encodeURIComponent(trace.trace_id)}/now`), ask("/policy")]).then(
    ([found, status]) => room.replaceChildren(h("h3", {}, "The same request today"), ...today(trace, found, status).filter(Boolean)),
    (error) => room.lastElementChild.replaceChildren(error.message),
  );
  return room;
}

function today(trace, found, status) {
  const isRefused = status.is_current === false;
  const line = found.rules.find((rule) => rule.name === found.rule)?.line;
  return [
    h("p.quietly", {}, "by ", h("code", {}, `${found.policy}@${found.revision}`),
      found.is_same_revision ? ", the revision that served it" : ", in force now"),
    isRefused && h("p.problem", {}, "The folder on disk is refused; this is the last good set."),
    verdict(trace, found),
    line > 0 && h("p.quietly", {}, "decided in ", h("code", {}, `${found.policy}.yaml:${line}`)),
    found.refused.length > 0 && steps(found.refused.map(({ lane: name, reason }) => ({ name, outcome: "out", says: reason }))),
    !found.is_same_revision && found.rules.length > 0 && steps(found.rules.map((rule) => ({
      ...rule, says: rule.outcome === "unknown" ? `${rule.says} was not recorded` : rule.says }))),
    lanes(trace, found),
  ];
}

function verdict(trace, found) {
  if (!found.has_policy) return h("p", {}, `There is no policy “${found.policy}” any more.`);
  if (found.missing) return h("p", {}, "It cannot be said: ", h("code", {}, found.missing), " is not in the record.");
  if (found.not_sent) return h("p.change", {}, `It would not be sent: ${found.not_sent}`, found.rule && ` (rule ${found.rule})`, ".");
  const money = found.cost_usd === null ? "at an unknown cost" : `${found.is_estimate ? "about " : ""}${dollars(found.cost_usd)}`;
  if (!found.is_moved)
    return h("p", {}, "The same: ", lane(found.lane), ` ${found.model}, ${money}`,
      found.rule !== trace.rule && ` by rule ${found.rule}`, ".");
  const less = found.cost_usd !== null && trace.cost_usd ? (found.cost_usd - trace.cost_usd) / trace.cost_usd : null;
  return h("p.change", {}, "It would go to ", lane(found.lane), ` ${found.model} by rule `, h("code", {}, found.rule), `, ${money}`,
    less === null ? "" : h(`b.${less > 0 ? "loss" : "gain"}`, {}, less > 2
      ? ` (${(1 + less).toFixed(0)} times as much)`
      : ` (${less > 0 ? "+" : "−"}${percent(Math.abs(less))})`), ".");
}

function lanes(trace, found) {
  if (!found.lanes.length) return null;
  return h("details", {}, h("summary", {}, "What it would cost on each lane"),
    h("table.small", {}, h("tbody", {}, found.lanes.map((one) => h("tr", {}, h("td", {}, lane(one.lane)), h("td", {}, one.model),
      h("td.n", {}, one.cost_usd === null ? "unknown" : `${one.is_estimate ? "≈ " : ""}${dollars(one.cost_usd)}`))))),
    found.lanes.some((one) => one.is_estimate)
      && h("p.quietly", {}, "≈ the same words at that model's tokens and prices, its prompt cache cold."));
}
