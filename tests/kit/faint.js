// Every element with text of its own, against the first ground behind it; a canvas turns any colour into bytes.
() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const bytes = (color) => { context.clearRect(0, 0, 1, 1); context.fillStyle = color; context.fillRect(0, 0, 1, 1); return context.getImageData(0, 0, 1, 1).data; };
  const light = (color) => { const [r, g, b] = [...bytes(color)].map((c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (element) => { for (let at = element; at; at = at.parentElement) { const color = getComputedStyle(at).backgroundColor; if (bytes(color)[3] > 250) return color; } return "white"; };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    if (!element.checkVisibility() || ![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const style = getComputedStyle(element);
    if (style.animationName !== "none") continue;
    const [one, other] = [light(style.color), light(ground(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4) faint.push(`${element.tagName}.${element.getAttribute("class")} ${element.textContent.slice(0, 20)} ${contrast.toFixed(1)}`);
  }
  return faint;
}
