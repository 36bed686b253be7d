// Ten thousand dots on a canvas, written pixel by pixel, as a path for each takes too long to follow a finger. The layer is
// kept while nothing moves.

const MARGIN = 16;

export class Dots {
  #layer = document.createElement("canvas");
  #drawn = "";

  constructor(canvas) {
    this.canvas = canvas;
    this.set([], [], []);
    this.view = { zoom: 1, x: 0, y: 0 }; // centre of what is seen, in the plane
  }

  /** Take places in the plane; where a dot had one before, it glides from there. */
  set(ids, x, y, before = new Map()) {
    [this.ids, this.n] = [ids, ids.length];
    [this.toX, this.toY] = [Float32Array.from(x), Float32Array.from(y)];
    [this.fromX, this.fromY] = [Float32Array.from(x), Float32Array.from(y)];
    ids.forEach((id, i) => {
      const was = before.get(id);
      if (was) [this.fromX[i], this.fromY[i]] = was;
    });
    this.part = 1; // of the way
    this.stale();
  }

  /** A colour for each dot: a number of `palette`; the dots of later colours lie above. */
  paint(code, palette) {
    [this.code, this.palette] = [code, palette];
    this.order = Uint32Array.from(this.ids.keys()).sort((a, b) => code[a] - code[b]);
    this.rgb = palette.map(rgbOf);
    this.stale();
  }

  stale() { this.#drawn = ""; }

  places() {
    return new Map(this.ids.map((id, i) => [id, [this.x(i), this.y(i)]]));
  }

  x(i) { return this.fromX[i] + (this.toX[i] - this.fromX[i]) * this.part; }

  y(i) { return this.fromY[i] + (this.toY[i] - this.fromY[i]) * this.part; }

  #span() { return [(this.canvas.clientWidth - 2 * MARGIN) / 2, (this.canvas.clientHeight - 2 * MARGIN) / 2]; }

  at(i) {
    const [width, height] = this.#span();
    const { zoom, x, y } = this.view;
    return [MARGIN + width * (1 + (this.x(i) - x) * zoom), MARGIN + height * (1 - (this.y(i) - y) * zoom)];
  }

  nearest(x, y, within = 18) {
    let [best, distance] = [-1, within ** 2];
    const places = this.#places();
    for (let i = 0; i < this.n; i += 1) {
      const d = (places[2 * i] - x) ** 2 + (places[2 * i + 1] - y) ** 2;
      if (d < distance) [best, distance] = [i, d];
    }
    return best;
  }

  /** The dots within a closed line of the canvas. */
  inside(line) {
    const [found, places] = [[], this.#places()];
    for (let i = 0; i < this.n; i += 1) {
      const [x, y] = [places[2 * i], places[2 * i + 1]];
      let odd = false;
      for (let a = 0, b = line.length - 1; a < line.length; b = a++) {
        const [[ax, ay], [bx, by]] = [line[a], line[b]];
        if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
      }
      if (odd) found.push(i);
    }
    return found;
  }

  /** Zoom by a factor about a place of the canvas, its middle by default; 0 shows all. */
  zoom(factor, atX = this.canvas.clientWidth / 2, atY = this.canvas.clientHeight / 2) {
    const [width, height] = this.#span();
    const [x, y] = [(atX - MARGIN) / width - 1, 1 - (atY - MARGIN) / height];
    const { view } = this;
    const next = factor ? Math.min(40, Math.max(1, view.zoom * factor)) : 1;
    this.view = next === 1 ? { zoom: 1, x: 0, y: 0 }
      : { zoom: next, x: view.x + x / view.zoom - x / next, y: view.y + y / view.zoom - y / next };
    this.stale();
  }

  pan(dx, dy) {
    const [width, height] = this.#span();
    const { view } = this;
    this.view = { ...view, x: view.x - dx / width / view.zoom, y: view.y + dy / height / view.zoom };
    this.stale();
  }

  /** Draw all of them, fainter where something else is to stand out; gives the pen for more. */
  draw(radius, faint) {
    const scale = devicePixelRatio || 1;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    for (const one of [this.canvas, this.#layer]) {
      if (one.width !== Math.round(width * scale) || one.height !== Math.round(height * scale)) {
        [one.width, one.height] = [Math.round(width * scale), Math.round(height * scale)];
        this.stale();
      }
    }
    const key = `${radius} ${this.part}`;
    if (this.#drawn !== key) {
      this.#fill(radius, scale);
      this.#drawn = key;
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    pen.globalAlpha = faint ? 0.45 : 1;
    if (width && height) pen.drawImage(this.#layer, 0, 0);
    pen.globalAlpha = 1;
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    return pen;
  }

  /** One more dot, above the others. */
  stamp(pen, i, radius) {
    pen.fillStyle = this.palette[this.code[i]];
    pen.beginPath();
    pen.arc(...this.at(i), radius, 0, 2 * Math.PI);
    pen.fill();
  }

  #fill(radius, scale) {
    const { width, height } = this.#layer;
    if (!width || !height) return;
    const pen = this.#layer.getContext("2d");
    const image = pen.createImageData(width, height);
    const { data } = image;
    const [dx, dy, covered] = coverage(radius * scale);
    const reach = Math.ceil(radius * scale) + 1;
    const [places, order] = [this.#places(scale), this.order ?? []];
    for (const i of order) {
      const [px, py] = [Math.round(places[2 * i]), Math.round(places[2 * i + 1])];
      if (!(px >= reach && py >= reach && px < width - reach && py < height - reach)) continue;
      const [r, g, b] = this.rgb[this.code[i]];
      for (let n = 0; n < dx.length; n += 1) {
        const at = 4 * ((py + dy[n]) * width + px + dx[n]);
        const alpha = covered[n];
        const under = (data[at + 3] / 255) * (1 - alpha);
        const sum = alpha + under;
        data[at] = (r * alpha + data[at] * under) / sum;
        data[at + 1] = (g * alpha + data[at + 1] * under) / sum;
        data[at + 2] = (b * alpha + data[at + 2] * under) / sum;
        data[at + 3] = 255 * sum;
      }
    }
    pen.putImageData(image, 0, 0);
  }

  /** Where each dot is on the canvas, x and y in turn. */
  #places(scale = 1) {
    const [width, height] = this.#span(); // asked once: the browser may lay out the page to answer
    const { zoom, x, y } = this.view;
    const found = new Float32Array(2 * this.n);
    for (let i = 0; i < this.n; i += 1) {
      found[2 * i] = scale * (MARGIN + width * (1 + (this.x(i) - x) * zoom));
      found[2 * i + 1] = scale * (MARGIN + height * (1 - (this.y(i) - y) * zoom));
    }
    return found;
  }
}

/** The pixels of a dot about its middle, and how much of each is covered. */
function coverage(radius) {
  const found = [[], [], []];
  const reach = Math.ceil(radius);
  for (let dy = -reach; dy <= reach; dy += 1) {
    for (let dx = -reach; dx <= reach; dx += 1) {
      const alpha = 0.8 * Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(dx, dy)));
      if (alpha > 0) [dx, dy, alpha].forEach((value, n) => found[n].push(value));
    }
  }
  return [Int32Array.from(found[0]), Int32Array.from(found[1]), Float32Array.from(found[2])];
}

/** Red, green and blue of a colour as CSS writes it. */
function rgbOf(colour) {
  const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  pen.fillStyle = colour;
  pen.fillRect(0, 0, 1, 1);
  return pen.getImageData(0, 0, 1, 1).data;
}
