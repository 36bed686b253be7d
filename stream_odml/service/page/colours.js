// Colours of the map: by what is new, by class, by where a search errs, by an attribute.

const NAMED = 8;
const HUES = 24;

/** A colour number for each item, the palette that it counts in, and words for what stands out. */
export function colouring(by, plane, fresh, isDark) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const hue = (n) => `hsl(${Math.round((n * 137.508) % 360)} ${isDark ? "65% 66%" : "62% 42%"})`;
  if (by === "class") {
    return { code: plane.class.map((c) => c % HUES), palette: Array.from({ length: HUES }, (_, n) => hue(n)), legend: [] };
  }
  if (by === "error" && plane.differs) {
    const wrong = plane.differs.filter(Boolean).length;
    const share = plane.differs.length ? ` ${(100 * wrong / plane.differs.length).toFixed(1)} %` : "";
    return { code: plane.differs.map(Number), palette: [colour("--dots"), colour("--bad")],
      legend: [[colour("--bad"), `nearest is of another class${share}`]] };
  }
  if (by.startsWith("=") && plane.values) {
    const named = Math.min(NAMED, plane.values.length); // the most frequent come first
    return { code: plane.value.map((v) => (v < 0 || v >= named ? 0 : v + 1)),
      palette: [colour("--dots"), ...Array.from({ length: named }, (_, n) => hue(n))],
      legend: plane.values.slice(0, named).map((value, n) => [hue(n), value]) };
  }
  const isNew = plane.classes.map((name) => Number(fresh.has(name)));
  return { code: plane.class.map((c) => isNew[c]), palette: [colour("--dots"), colour("--new")],
    legend: [[colour("--new"), "new"], [colour("--dots"), "known"]] };
}
