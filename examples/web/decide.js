// From probabilities to mask, regions, score and verdict: magtiles_seg/decision.py and regions.py, in JavaScript.
// A test in Chromium holds both against each other; where they differ, Python is right.

/** A picture's score, 0..1: of the mean of its k largest probabilities, those along the border left out. */
export function scoreOf({ probability, width, height }, decision) {
  const y = Math.min(decision.score_margin_px, height >> 2), x = Math.min(decision.score_margin_px, width >> 2);
  const inner = new Float32Array((height - 2 * y) * (width - 2 * x));
  for (let row = y, to = 0; row < height - y; row++, to += width - 2 * x)
    inner.set(probability.subarray(row * width + x, (row + 1) * width - x), to);
  const top = inner.sort().slice(-decision.score_top_k_px);
  const mean = top.reduce((sum, value) => sum + value, 0) / top.length;
  const { score_scale: scale, score_bias: bias } = decision;
  if ((scale === 1 && bias === 0) || mean <= 0 || mean >= 1) return mean;
  return 1 / (1 + Math.exp(-scale * (Math.log(mean) - Math.log1p(-mean)) - bias));
}

/** What a score means. */
export function verdictOf(score, { reject_score, review_score }) {
  if (score >= reject_score) return "reject";
  return review_score !== null && score >= review_score ? "review" : "accept";
}

/** The mask (Uint8Array, 0 or 1), each pixel's region (Int32Array, 0 or its number) and the regions, largest first. */
export function findRegions({ probability, classes, width, height }, decision, labels) {
  const threshold = Math.fround(decision.threshold); // numpy compares as float32, too
  const drawn = new Int32Array(width * height); // -1: kept by no region
  const found = [];
  for (let start = 0; start < drawn.length; start++) {
    if (drawn[start] !== 0 || probability[start] < threshold) continue;
    const pixels = [start];
    drawn[start] = -1;
    for (let next = 0; next < pixels.length; next++) { // grows while it is walked: 8-connectivity
      const x = pixels[next] % width, y = (pixels[next] - x) / width;
      for (let v = Math.max(y - 1, 0); v <= Math.min(y + 1, height - 1); v++)
        for (let u = Math.max(x - 1, 0), at = v * width + u; u <= Math.min(x + 1, width - 1); u++, at++)
          if (drawn[at] === 0 && probability[at] >= threshold) { drawn[at] = -1; pixels.push(at); }
    }
    if (pixels.length >= decision.min_area_px) found.push({ pixels, row: measure(pixels, probability, classes, width, labels) });
  }
  found.sort(({ row: a }, { row: b }) => b.area_px - a.area_px || a.y0_px - b.y0_px || a.x0_px - b.x0_px);
  found.forEach(({ pixels }, index) => pixels.forEach((at) => { drawn[at] = index + 1; }));
  drawn.forEach((region, at) => { if (region < 0) drawn[at] = 0; });
  return { mask: Uint8Array.from(drawn, (region) => (region > 0 ? 1 : 0)), drawn, rows: found.map(({ row }) => row) };
}

/** One region as Defect.row() has it: label, score, area, box (the last two exclusive), centroid, sides. */
function measure(pixels, probability, classes, width, labels) {
  const sums = new Float64Array(labels.length), spans = new Map(); // y -> leftmost and rightmost x: all that a hull needs
  let x0 = Infinity, y0 = Infinity, x1 = 0, y1 = 0, sumX = 0, sumY = 0, sum = 0;
  for (const at of pixels) {
    const x = at % width, y = (at - x) / width;
    x0 = Math.min(x0, x); x1 = Math.max(x1, x + 1); y0 = Math.min(y0, y); y1 = Math.max(y1, y + 1);
    sumX += x; sumY += y; sum += probability[at];
    sums[classes[at]] += probability[at];
    const [left, right] = spans.get(y) ?? [x, x];
    spans.set(y, [Math.min(left, x), Math.max(right, x)]);
  }
  const corners = [...spans].flatMap(([y, [l, r]]) => [[l, y], [l, y + 1], [r + 1, y], [r + 1, y + 1]]); // a pixel is a square
  const area = pixels.length, [length, breadth] = smallestRectangle(convexHull(corners));
  return {
    label: labels[sums.indexOf(Math.max(...sums.subarray(1)), 1)], score: Math.min(1, sum / area), area_px: area,
    x0_px: x0, y0_px: y0, x1_px: x1, y1_px: y1, centroid_x_px: sumX / area, centroid_y_px: sumY / area,
    length_px: length, width_px: breadth, area_mm2: "", length_mm: "", width_mm: "", // no scale is known here
  };
}

/** The convex hull of points [x, y], by Andrew's monotone chain. */
function convexHull(points) {
  points.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const half = (ordered) => {
    const hull = [];
    for (const p of ordered) {
      while (hull.length > 1 && turn(hull.at(-2), hull.at(-1), p) <= 0) hull.pop();
      hull.push(p);
    }
    return hull.slice(0, -1);
  };
  return [...half(points), ...half(points.reverse())];
}

const turn = (a, b, c) => (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);

/** Longer and shorter side of the smallest rectangle round a hull: one of its sides lies on one of the hull's. */
function smallestRectangle(hull) {
  let best = [Infinity, Infinity];
  hull.forEach((a, index) => {
    const b = hull[(index + 1) % hull.length], far = Math.hypot(b[0] - a[0], b[1] - a[1]);
    const along = hull.map((p) => ((p[0] - a[0]) * (b[0] - a[0]) + (p[1] - a[1]) * (b[1] - a[1])) / far);
    const across = hull.map((p) => turn(a, b, p) / far);
    const sides = [along, across].map((side) => Math.max(...side) - Math.min(...side));
    if (sides[0] * sides[1] < best[0] * best[1] - 1e-9) best = sides;
  });
  return best.sort((a, b) => b - a);
}
