// The address is the state: which view, which trace is open, which filters hold.

export const FILTERS = [
  "rule", "task", "model", "lane", "outcome", "status", "cache", "cache_reason", "policy", "tenant", "key", "conversation",
  "session", "endpoint", "batch", "trace_id", "request_id", "min_duration", "min_cost_usd", "until",
];
export const GROUPS = ["rule", "model", "task", "key", "lane", "policy", "outcome"];

export const params = () => new URLSearchParams(location.search);
export const filters = () => [...params()].filter(([name, value]) => FILTERS.includes(name) && value);
export const isOverview = () => location.pathname === "/overview";
/** Whether the requests of all routers are shown; figures over time are always of this one. */
export const isFleet = () => params().get("fleet") === "1" && !isOverview();
export const group = () => (GROUPS.includes(params().get("by")) ? params().get("by") : "rule");

/** The id in `/t/ID`, else null. */
export function openId() {
  const found = location.pathname.match(/^\/t\/(.+)$/);
  try {
    return found ? decodeURIComponent(found[1]) : null;
  } catch {
    return found[1];
  }
}

/** The id in `/t/ID?with=ID2`: of the request that is shown beside the open one; else null. */
export const mateId = () => (openId() === null ? null : params().get("with") || null);

/** What to ask the server for: the filters and the time, and `extra`. */
export function query(extra = {}) {
  const asked = new URLSearchParams(filters());
  const since = params().get("since");
  if (since) asked.set("since", since);
  for (const [name, value] of Object.entries(extra)) asked.set(name, value);
  return asked;
}

/** The same of whoever is looked at: this router, or the fleet. */
export const scoped = (extra = {}) => query(isFleet() ? { ...extra, fleet: "1" } : extra);

/** Where one request is asked for. */
export const traceData = (id) => `/traces/${encodeURIComponent(id)}${isFleet() ? "?fleet=1" : ""}`;

/** The address after a change of the query string (an empty value takes a name away) and of the path. */
export function address(change = {}, path = location.pathname) {
  const after = params();
  for (const [name, value] of Object.entries(change)) value ? after.set(name, value) : after.delete(name);
  if (!path.startsWith("/t/")) after.delete("with");
  return path + (after.size ? `?${after}` : "");
}

export const tracePath = (id) => `/t/${encodeURIComponent(id)}`;
