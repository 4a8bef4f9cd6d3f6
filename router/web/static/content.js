// What was captured of a request. It is asked for when somebody opens it, so that words are on no screen by themselves.

import { ask, count, h } from "./dom.js";
import { section } from "./why.js";

const CAPTURED = ["messages", "count_tokens", "batches"];

/** A closed part of the panel; opened, it asks, and shows what the router has or why it has nothing. */
export function content(trace) {
  if (!CAPTURED.includes(trace.endpoint)) return null;
  const room = h("div.said", {});
  const details = h("details", {}, h("summary", {}, "Captured words"), room);
  details.addEventListener("toggle", () => { if (details.open) fill(room, trace); else room.replaceChildren(); });
  return section("Content", details);
}

async function fill(room, trace) {
  room.replaceChildren(h("p.quietly", {}, "asking …"));
  try {
    const { contents } = await ask(`/traces/${encodeURIComponent(trace.trace_id)}/content`);
    room.replaceChildren(...contents.flatMap((each) => [
      h("p.quietly", {}, `${each.started_at}, ${count(each.redacted)} places taken out`),
      ...["request", "answer"].flatMap((name) => [
        h("h4", {}, name, h("small", {}, ` ${count(each[`${name}_bytes`])} bytes${each[`${name}_is_cut`] ? ", cut" : ""}`)),
        h("pre", { tabindex: "0", role: "region", "aria-label": `${name}, as captured` }, indented(each[name]))]),
    ]));
  } catch (error) {
    room.replaceChildren(h("p.quietly", {}, error.message));
  }
}

/** JSON a line for each value; whatever is no JSON as it is. */
function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
