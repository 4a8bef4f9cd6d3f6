// Small charts over time, drawn as SVG: bars that add up, or lines. Colours are classes, so the style sheet decides.
// A chart is a slider to the keyboard and to a screen reader: arrows move along the time, each stop is read out.

import { h, moment } from "./dom.js";

const WIDE = 1000, HIGH = 100; // of the drawing, which is stretched to the room it gets
const MOST_TOLD = 6;

export class Chart {
  /** `kind`: "bars" or "lines". `format` says a value in full, `few` on the axis. `pick(index)` is a click on a step. */
  constructor({ title, kind, format, few, pick, point }) {
    Object.assign(this, { title, kind, format, few, pick, series: [], times: [], at: -1 });
    this.say = h("b", {});
    this.svg = h("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.cursor = h("i.cursor", { hidden: true });
    this.tip = h("div.tip", { hidden: true });
    this.top = h("span", {});
    this.bottom = h("span", {});
    this.from = h("span", {});
    this.to = h("span", {});
    this.plot = h("div.plot", { role: "slider", tabindex: "0", "aria-label": `${title} over time`, "aria-valuemin": "0" }, this.svg, this.cursor, this.tip);
    this.element = h("figure.chart", {},
      h("figcaption", {}, h("span", {}, title), this.say),
      h("div.axis", { "aria-hidden": "true" }, this.top, this.bottom), this.plot, h("div.span", { "aria-hidden": "true" }, this.from, this.to));
    const index = (event) => {
      const box = this.plot.getBoundingClientRect();
      return Math.min(this.times.length - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * this.times.length)));
    };
    this.plot.addEventListener("pointermove", (event) => point(index(event), this));
    this.plot.addEventListener("pointerleave", () => point(-1, null));
    this.plot.addEventListener("blur", () => point(-1, null));
    this.plot.addEventListener("click", (event) => pick(index(event)));
    this.plot.addEventListener("keydown", (event) => {
      const last = this.times.length - 1;
      const to = { ArrowLeft: Math.max(0, (this.at < 0 ? last + 1 : this.at) - 1), ArrowRight: Math.min(last, this.at + 1), Home: 0, End: last }[event.key];
      if (to !== undefined) point(to, this);
      else if (event.key === "Enter" && this.at >= 0) pick(this.at);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  /** New data: `series` are `{ name, color, values }`, `sum` says the whole span in words. */
  update({ times, isDay, series, sum }) {
    Object.assign(this, { times, isDay, series, sum });
    const [low, high] = this.bounds();
    const y = (value) => HIGH - ((value - low) / (high - low)) * HIGH;
    const paths = this.kind === "bars" ? this.bars(y) : this.lines(y);
    const zero = y(0).toFixed(2);
    this.svg.replaceChildren(h("line.zero", { x1: 0, x2: WIDE, y1: zero, y2: zero }), ...paths);
    this.top.textContent = this.few(high);
    this.bottom.textContent = low < 0 ? this.few(low) : "";
    this.from.textContent = moment(times[0], isDay);
    this.to.textContent = moment(times.at(-1), isDay);
    this.plot.setAttribute("aria-valuemax", String(times.length - 1));
    this.show(Math.min(this.at, times.length - 1), !this.tip.hidden);
  }

  /** The lowest and highest value to make room for: 0 is always in it, and the highest is a round number. */
  bounds() {
    let low = 0, high = 0;
    for (let at = 0; at < this.times.length; at++) {
      let up = 0, down = 0;
      for (const { values } of this.series) {
        const value = values[at] ?? 0;
        if (this.kind === "lines") [up, down] = [Math.max(up, value), Math.min(down, value)];
        else if (value > 0) up += value;
        else down += value;
      }
      [low, high] = [Math.min(low, down), Math.max(high, up)];
    }
    return [low < 0 ? -round(-low) : 0, round(high) || (low < 0 ? 0 : 1)];
  }

  bars(y) {
    const step = WIDE / this.times.length, wide = Math.max(step * 0.8, Math.min(step, 2));
    const up = new Array(this.times.length).fill(0), down = new Array(this.times.length).fill(0);
    return this.series.map(({ color, values }) => {
      let d = "";
      values.forEach((value, at) => {
        if (!value) return;
        const base = value > 0 ? up : down;
        const [from, to] = [y(base[at]), y(base[at] + value)];
        base[at] += value;
        d += `M${(at * step + (step - wide) / 2).toFixed(2)} ${from.toFixed(2)}h${wide.toFixed(2)}V${to.toFixed(2)}h${(-wide).toFixed(2)}z`;
      });
      return h(`path.fill.${color}`, { d });
    });
  }

  lines(y) {
    const step = WIDE / this.times.length;
    return this.series.map(({ color, values }) => {
      let d = "";
      values.forEach((value, at) => {
        if (value === null || value === undefined) return;
        const isAlone = at === 0 || values[at - 1] === null;
        d += `${isAlone ? "M" : "L"}${((at + 0.5) * step).toFixed(2)} ${y(value).toFixed(2)}${isAlone ? "h.01" : ""}`;
      });
      return h(`path.stroke.${color}`, { d });
    });
  }

  /** The cursor on a step (-1: none); `isTold` where this chart is the one that is pointed at. */
  show(at, isTold) {
    this.at = at;
    const isOff = at < 0;
    this.cursor.hidden = isOff;
    this.tip.hidden = isOff || !isTold;
    const told = isOff ? [] : this.series.map((one) => [one, one.values[at]]).filter(([, value]) => value);
    const sum = this.kind === "bars" ? told.reduce((all, [, value]) => all + value, 0) : told.length === 1 ? told[0][1] : null;
    this.say.textContent = isOff ? this.sum : sum === null ? "" : this.format(sum);
    const when = isOff ? "" : moment(this.times[at], this.isDay);
    told.sort(([, one], [, other]) => Math.abs(other) - Math.abs(one));
    const words = told.slice(0, MOST_TOLD).map(([one, value]) => `${one.name || "–"} ${this.format(value)}`);
    this.plot.setAttribute("aria-valuenow", String(Math.max(0, at)));
    this.plot.setAttribute("aria-valuetext", isOff ? `${this.sum || "no single figure"} in all` : `${when}: ${words.join(", ") || "nothing"}`);
    if (isOff) return;
    this.cursor.style.setProperty("--at", `${((at + 0.5) / this.times.length) * 100}%`);
    if (!isTold) return;
    this.tip.classList.toggle("left", at > this.times.length / 2);
    this.tip.style.setProperty("--at", `${((at + 0.5) / this.times.length) * 100}%`);
    this.tip.replaceChildren(h("b", {}, when), ...told.slice(0, MOST_TOLD).map(([one, value]) => h(`span.key.${one.color}`, {}, h("em", {}, one.name || "–"), h("b", {}, this.format(value)))),
      told.length === 0 && "nothing");
  }
}

/** The next of 1, 2, 2.5, 5 times a power of ten. */
function round(value) {
  if (!(value > 0)) return 0;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].find((step) => step * power >= value * 0.999) * power;
}
