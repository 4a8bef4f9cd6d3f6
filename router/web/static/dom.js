// Building blocks: elements whose text is always a text node, and numbers as people read them.

const SVG = new Set(["svg", "path", "line"]);

/** An element. `attrs`: attributes, `on…` functions, `vars` (CSS custom properties). Children: nodes or text. */
export function h(name, attrs = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = SVG.has(tag) ? document.createElementNS(document.querySelector("svg").namespaceURI, tag) : document.createElement(tag);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(attrs)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "vars") for (const [prop, v] of Object.entries(value)) element.style.setProperty(`--${prop}`, v);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

export const $ = (id) => document.getElementById(id);

/** Text in which `backticks` mark names, as nodes. */
export function marked(text) {
  return String(text).split("`").map((part, at) => (at % 2 ? h("code", {}, part) : document.createTextNode(part)));
}

export function dollars(value) {
  if (value === null || value === undefined) return "unknown";
  const size = Math.abs(value);
  const places = size === 0 ? 2 : size >= 100 ? 2 : size >= 0.1 ? 4 : 6;
  return `${value < 0 ? "−" : ""}$${size.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places })}`;
}

/** Dollars for the side of a chart: few digits. */
export function fewDollars(value) {
  const size = Math.abs(value);
  const shown = size === 0 ? "0" : size >= 1000 ? `${+(size / 1000).toPrecision(3)}k` : size >= 0.001 ? String(+size.toPrecision(3)) : size.toExponential(0);
  return `${value < 0 ? "−" : ""}$${shown}`;
}

export const fewCount = (value) => (value >= 1e6 ? `${+(value / 1e6).toPrecision(3)}M` : value >= 1000 ? `${+(value / 1000).toPrecision(3)}k` : String(+value.toPrecision(3)));

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 s";
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

export const percent = (value, places = 0) => (value === null || value === undefined ? "–" : `${value < 0 ? "−" : ""}${(Math.abs(value) * 100).toFixed(places)} %`);

export const count = (value) => Number(value ?? 0).toLocaleString("en-US");

export function clock(iso) {
  const moment = new Date(iso);
  const time = moment.toLocaleTimeString("en-GB");
  return moment.toDateString() === new Date().toDateString()
    ? time
    : `${moment.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time}`;
}

/** A moment on the axis of a chart; `isDay` where its steps are so long that the time of day says nothing. */
export function moment(unixS, isDay) {
  const at = new Date(unixS * 1000);
  const day = at.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return isDay ? day : `${at.toDateString() === new Date().toDateString() ? "" : `${day} `}${at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" })}`;
}

/** A hue for a name: the same name always looks the same. */
export function hue(name) {
  let sum = 7;
  for (const letter of String(name)) sum = (sum * 31 + letter.codePointAt(0)) % 3600;
  return (sum * 47) % 360;
}

/** An answer of the admin listener; an error becomes an Error with the server's own words. */
export async function ask(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" } });
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 401) location.assign("/login");
  if (!answer.ok) throw new Error(body.error?.message ?? `the router answered ${answer.status}`);
  return body;
}

/** A button that copies what `text()` gives, and says so. */
export function copyButton(label, text, title = `Copy ${label}`) {
  const button = h("button.quiet", { type: "button", title }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "copied";
    } catch {
      button.textContent = "not allowed";
    }
    setTimeout(() => { button.textContent = label; }, 1200);
  });
  return button;
}
