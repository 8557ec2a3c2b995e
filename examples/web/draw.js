// A result as people see it: the grey picture, each region outlined and numbered in its class's colour.

/** Draw onto a canvas, enlarged by a whole number so that lines stay sharp. */
export function draw(canvas, { grey, width, height, drawn, rows }, colourOf) {
  const zoom = Math.max(1, Math.min(4, Math.floor(1200 / Math.max(width, height))));
  const picture = new ImageData(width, height);
  grey.forEach((value, at) => picture.data.set([value, value, value, 255], 4 * at));
  const small = new OffscreenCanvas(width, height), pen = canvas.getContext("2d");
  small.getContext("2d").putImageData(picture, 0, 0);
  Object.assign(canvas, { width: width * zoom, height: height * zoom });
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : drawn[y * width + x]);
  rows.forEach((row, index) => {
    pen.beginPath(); // the edges between a pixel of the region and one that is not
    for (let y = row.y0_px; y < row.y1_px; y++) for (let x = row.x0_px; x < row.x1_px; x++) {
      if (at(x, y) !== index + 1) continue;
      for (const [u, v, ax, ay, bx, by] of [[-1, 0, 0, 0, 0, 1], [1, 0, 1, 0, 1, 1], [0, -1, 0, 0, 1, 0], [0, 1, 0, 1, 1, 1]]) {
        if (at(x + u, y + v) === index + 1) continue;
        pen.moveTo((x + ax) * zoom, (y + ay) * zoom);
        pen.lineTo((x + bx) * zoom, (y + by) * zoom);
      }
    }
    for (const [colour, thick] of [["#000", 4], [colourOf(row.label), 2]]) stroke(pen, colour, thick);
  });
  rows.forEach((row, index) => number(pen, canvas, row, index + 1, zoom, colourOf(row.label)));
}

function stroke(pen, colour, thick) {
  Object.assign(pen, { strokeStyle: colour, lineWidth: thick, lineCap: "square" });
  pen.stroke();
}

function number(pen, canvas, row, text, zoom, colour) {
  const size = Math.max(14, canvas.width / 36), wide = size * (0.5 + 0.6 * String(text).length);
  const x = Math.min(row.x0_px * zoom, canvas.width - wide), y = Math.max(row.y0_px * zoom - size * 1.3, 0);
  pen.fillStyle = colour;
  pen.fillRect(x, y, wide, size * 1.2);
  Object.assign(pen, { fillStyle: "#000", font: `bold ${size}px sans-serif`, textBaseline: "middle", textAlign: "center" });
  pen.fillText(text, x + wide / 2, y + size * 0.65);
}
