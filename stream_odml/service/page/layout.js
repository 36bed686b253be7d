// Similar items side by side: UMAP (McInnes, Healy and Melville 2018) from the nearest neighbours of each item, which weigh by
// their rank. A plane of principal components shows no more than two directions of a hundred: classes lie on top of each other.

const [A, B] = [1.577, 0.8951]; // attraction is 1 / (1 + A d^2B): dots that belong together end 0.1 apart or nearer
const RANK = 0.7; // weight of a neighbour over that of the one before it
const NEGATIVES = 5;
const SPREAD = 10;
const REACH = 4;

/** Move places `x`, `y` within -1..1; `near` has as many neighbours of each item, -1 for none. The same places for the same items. */
export function place({ x, y, near, epochs, strength }) {
  const n = x.length;
  if (!n) return { x, y };
  const [k, random] = [near.length / n, chance(n)];
  const clip = (g) => (g > REACH ? REACH : g < -REACH ? -REACH : g);
  for (let i = 0; i < n; i += 1) [x[i], y[i]] = [x[i] * SPREAD + random() * 1e-3, y[i] * SPREAD + random() * 1e-3];
  for (let epoch = 0; epoch < epochs; epoch += 1) {
    const rate = strength * (1 - epoch / epochs);
    for (let e = 0; e < near.length; e += 1) {
      const [i, j] = [Math.floor(e / k), near[e]];
      if (j < 0 || random() > RANK ** (e % k)) continue;
      let [dx, dy] = [x[i] - x[j], y[i] - y[j]];
      let d = dx * dx + dy * dy;
      if (d > 0) {
        const p = d ** B;
        const g = (-2 * A * B * p) / d / (1 + A * p);
        const [gx, gy] = [rate * clip(g * dx), rate * clip(g * dy)];
        x[i] += gx; y[i] += gy; x[j] -= gx; y[j] -= gy;
      }
      for (let t = 0; t < NEGATIVES; t += 1) {
        const o = Math.floor(random() * n);
        if (o === i) continue;
        [dx, dy] = [x[i] - x[o], y[i] - y[o]];
        d = dx * dx + dy * dy;
        const g = (2 * B) / ((0.001 + d) * (1 + A * d ** B));
        x[i] += rate * clip(g * dx); y[i] += rate * clip(g * dy);
      }
    }
  }
  return within(x, y);
}

/** Where to begin: items that had a place keep it, others begin amid their neighbours, or where the plane has them. */
export function begin({ ids, x, y, near }, placed) {
  const had = ids.map((id) => placed.get(id));
  const k = near.length / ids.length;
  const found = [Float32Array.from(x), Float32Array.from(y)];
  ids.forEach((_, i) => {
    const from = had[i] ? [had[i]] : near.slice(i * k, i * k + k).map((j) => had[j]).filter(Boolean);
    if (from.length) for (const axis of [0, 1]) found[axis][i] = from.reduce((sum, at) => sum + at[axis], 0) / from.length;
  });
  return { x: found[0], y: found[1] };
}

/** Fill the frame, each axis by itself. */
function within(x, y) {
  for (const axis of [x, y]) {
    let [low, high] = [Infinity, -Infinity];
    for (const value of axis) [low, high] = [Math.min(low, value), Math.max(high, value)];
    const [middle, reach] = [(low + high) / 2, Math.max((high - low) / 2, 1e-9)];
    for (let i = 0; i < axis.length; i += 1) axis[i] = (axis[i] - middle) / reach;
  }
  return { x, y };
}

/** Numbers from 0 to 1, the same for the same seed (mulberry32). */
function chance(seed) {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
