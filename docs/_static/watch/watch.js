// The page around network.js: it draws the passes of one example, and trains.
"use strict";

(() => {

const { ACTIVATIONS, MISTAKES, passes, cost, step, offBy, initialise, moons } = window.deepprop;
const SIZES = [2, 4, 4, 1];
const L = SIZES.length - 1;
const M = 24; // examples
const PAUSE = 450; // ms from one layer to the next
const SUBSCRIPTS = ["", "₁", "₂", "₃", "₄"];

const $ = (id) => document.getElementById(id);
const data = moons(M, 3);
const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
const now = { example: 0, layer: 2, unit: [1, 0], shown: 2 * L, running: false, steps: 0, costs: [] };
let model;
let right; // the passes without a mistake
let made; // the passes as they are made

// Drawing.

function svg(name, attributes, parent, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

function short(x) {
  if (!Number.isFinite(x)) return "∞";
  const size = Math.abs(x);
  const text = size >= 1000 || (size > 0 && size < 0.001) ? x.toExponential(0) : x.toFixed(size < 0.1 ? 3 : 2);
  return text.replace("-", "−");
}

// Blue for positive, red for negative numbers, white for 0.
function color(value, largest) {
  const share = largest > 0 && Number.isFinite(value) ? Math.min(1, Math.abs(value) / largest) : 0;
  const [r, g, b] = value > 0 ? [0x1b, 0x6c, 0xa8] : [0xb5, 0x48, 0x2a];
  return `rgb(${[r, g, b].map((c) => Math.round(255 - share * (255 - c))).join(",")})`;
}

const place = (l, j) => [60 + l * 205, 200 + (j - (SIZES[l] - 1) / 2) * 76];

function drawPlane() {
  const plane = $("plane");
  plane.replaceChildren();
  const n = 24;
  const [x0, y0, w, h] = [-1.8, -1.4, 3.6 / n, 2.8 / n];
  const grid = [[], []];
  for (let i = 0; i < n * n; i++) {
    grid[0].push(x0 + ((i % n) + 0.5) * w);
    grid[1].push(-(y0 + (Math.floor(i / n) + 0.5) * h));
  }
  const said = passes({ ...model, X: grid, Y: [grid[0].map(() => 0)] }).A[L][0];
  said.forEach((a, i) => svg("rect", {
    x: x0 + (i % n) * w, y: y0 + Math.floor(i / n) * h, width: w * 1.02, height: h * 1.02, fill: color(a - 0.5, 0.9),
  }, plane));
  for (let i = 0; i < M; i++) {
    const chosen = i === now.example;
    const dot = svg("circle", {
      cx: data.X[0][i], cy: -data.X[1][i], r: chosen ? 0.11 : 0.075, "data-example": i,
      fill: data.Y[0][i] ? "#1b6ca8" : "#b5482a", stroke: chosen ? "#000" : "#fff", "stroke-width": chosen ? 0.05 : 0.02,
    }, plane);
    dot.addEventListener("click", () => choose(i));
  }
}

// Which numbers are shown already: A[l] at moment l, dZ[l] at moment 2 L - l + 1.
const hasA = (l) => now.shown >= l;
const hasDZ = (l) => l > 0 && now.shown >= 2 * L - l + 1;

function drawNetwork() {
  const network = $("network");
  const focused = document.activeElement && document.activeElement.getAttribute("data-unit");
  network.replaceChildren();
  const i = now.example;
  for (let l = 1; l <= L; l++) {
    const largest = Math.max(...model.W[l].flat().map(Math.abs));
    model.W[l].forEach((row, j) => row.forEach((w, k) => {
      const [[x1, y1], [x2, y2]] = [place(l - 1, k), place(l, j)];
      const stroke = w > 0 ? "var(--up)" : "var(--down)";
      svg("line", { x1, y1, x2, y2, stroke, "stroke-width": 0.3 + (4 * Math.abs(w)) / largest, opacity: 0.35 }, network);
    }));
    drawArrows(network, l);
  }
  SIZES.forEach((n, l) => {
    for (let j = 0; j < n; j++) {
      const [x, y] = place(l, j);
      const chosen = now.unit[0] === l && now.unit[1] === j;
      const unit = svg("g", {
        class: chosen ? "unit chosen" : "unit", tabindex: 0, role: "button", "data-unit": `${l} ${j}`,
        "aria-label": l ? `unit ${j + 1} of layer ${l}` : `input ${j + 1}`,
      }, network);
      svg("circle", { cx: x, cy: y, r: 24 }, unit);
      if (hasA(l)) svg("text", { x, y: y - 3, "text-anchor": "middle", class: "up" }, unit, short(made.A[l][j][i]));
      if (hasDZ(l)) svg("text", { x, y: y + 14, "text-anchor": "middle", class: "down" }, unit, short(made.dZ[l][j][i]));
      const pick = () => { now.unit = [l, j]; draw(); };
      unit.addEventListener("click", pick);
      unit.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(); }
      });
    }
  });
  if (focused) network.querySelector(`[data-unit="${focused}"]`).focus();
}

function drawArrows(network, l) {
  const x = (place(l - 1, 0)[0] + place(l, 0)[0]) / 2;
  const [up, down] = [now.shown === l, now.shown === 2 * L - l + 1];
  const line = (y, text, kind, bold) => svg("text", {
    x, y, "text-anchor": "middle", class: `equation ${kind}`, "font-weight": bold ? "bold" : "normal",
  }, network, text);
  line(18, `Z[${l}] = W[${l}] A[${l - 1}] + b[${l}]`, "up", up);
  line(38, `A[${l}] = g(Z[${l}]) →`, "up", up);
  if (l === L) {
    line(372, `← dZ[${L}] = A[${L}] − Y`, "down", down);
  } else {
    line(372, `← dA[${l}] = W[${l + 1}]ᵀ dZ[${l + 1}]`, "down", down);
    line(392, `dZ[${l}] = dA[${l}] * g'(Z[${l}])`, "down", down);
  }
}

function drawUnit() {
  const [l, j] = now.unit;
  const i = now.example;
  const name = (what, layer, k) => `${what}${SUBSCRIPTS[k + 1]}[${layer}]`;
  if (l === 0) {
    $("unit").textContent = `${name("a", 0, j)} = x${SUBSCRIPTS[j + 1]} = ${short(data.X[j][i])}`;
    return;
  }
  const terms = model.W[l][j].map((w, k) => `${short(w)}·${short(made.A[l - 1][k][i])}`).join(" + ");
  const lines = [
    `${name("z", l, j)} = ${terms} + ${short(model.b[l][j][0])} = ${short(made.Z[l][j][i])}`,
    `${name("a", l, j)} = g(z) = ${short(made.A[l][j][i])}`,
  ];
  if (l === L) {
    lines.push(`${name("dz", l, j)} = a − y = ${short(made.A[l][j][i])} − ${data.Y[0][i]} = ${short(right.dZ[l][j][i])}`);
  } else {
    const parts = model.W[l + 1].map((row, k) => `${short(row[j])}·${short(made.dZ[l + 1][k][i])}`).join(" + ");
    const slope = ACTIVATIONS[model.activation].slope(made.Z[l][j][i], made.A[l][j][i]);
    lines.push(`${name("da", l, j)} = ${parts} = ${short(right.dA[l][j][i])}`);
    lines.push(`${name("dz", l, j)} = da · g'(z) = ${short(right.dA[l][j][i])} · ${short(slope)} = ${short(right.dZ[l][j][i])}`);
  }
  if (Math.abs(made.dZ[l][j][i] - right.dZ[l][j][i]) > 1e-9) lines.push(`with the mistake: dz = ${short(made.dZ[l][j][i])}`);
  $("unit").textContent = lines.join("\n");
}

function heat(P, cell) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const [rows, columns] = [P.length, P[0].length];
  node.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
  node.style.height = `${rows * cell}px`;
  node.style.width = `${columns * cell}px`;
  const largest = Math.max(...P.flat().map(Math.abs));
  P.forEach((row, y) => row.forEach((p, x) => svg("rect", { x, y, width: 1.01, height: 1.01, fill: color(p, largest) }, node)));
  return node;
}

function drawOuter() {
  const l = now.layer;
  const outer = $("outer");
  outer.replaceChildren();
  const add = (P, cell, caption, chosen) => {
    const figure = document.createElement("figure");
    figure.className = chosen ? "chosen" : "";
    figure.append(heat(P, cell), caption);
    outer.append(figure);
    return figure;
  };
  for (let i = 0; i < M; i++) {
    const P = made.dZ[l].map((dz) => made.A[l - 1].map((a) => dz[i] * a[i]));
    const figure = add(P, 9, `${i + 1}`, i === now.example);
    figure.addEventListener("click", () => choose(i));
  }
  add(made.dW[l], 26, `dW[${l}]`, false);
  $("layers").replaceChildren(...[1, 2, 3].map((k) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = k;
    button.setAttribute("aria-pressed", k === l);
    button.addEventListener("click", () => { now.layer = k; drawOuter(); });
    return button;
  }));
}

function drawCurve() {
  const curve = $("curve");
  curve.replaceChildren();
  const shown = now.costs.slice(-2000);
  const largest = Math.max(1, ...shown.filter(Number.isFinite));
  const points = shown.map((J, i) => `${(300 * i) / Math.max(1, shown.length - 1) + 10},${150 - 135 * Math.min(1, J / largest)}`);
  svg("line", { x1: 10, y1: 150, x2: 310, y2: 150, stroke: "var(--line)" }, curve);
  svg("polyline", { points: points.join(" "), fill: "none", stroke: "var(--up)", "stroke-width": 2 }, curve);
}

function draw() {
  const off = offBy(right, made);
  const mistake = $("mistake").value;
  $("state").textContent = `Step ${now.steps}, J = ${cost(made).toFixed(4)}, ${correct()} of ${M} right` +
    (mistake ? `. With this mistake the gradient is off by ${(100 * off).toFixed(0)} % of its length.` : ".");
  $("which").textContent = `${now.example + 1}, y = ${data.Y[0][now.example]}`;
  drawPlane();
  drawNetwork();
  drawUnit();
  drawOuter();
  drawCurve();
}

// What happens.

function correct() {
  return made.A[L][0].filter((a, i) => (a > 0.5) === (data.Y[0][i] === 1)).length;
}

function compute() {
  right = passes({ ...model, ...data });
  made = passes({ ...model, ...data }, $("mistake").value);
}

function choose(i) {
  now.example = (i + M) % M;
  replay();
}

// Show A[1], ..., A[L] and then dZ[L], ..., dZ[1], one after the other.
function replay() {
  clearTimeout(now.timer);
  now.shown = still || now.running ? 2 * L : 0;
  draw();
  const next = () => {
    if (now.shown >= 2 * L) return;
    now.shown += 1;
    drawNetwork();
    now.timer = setTimeout(next, PAUSE);
  };
  if (now.shown < 2 * L) now.timer = setTimeout(next, PAUSE);
}

function descend() {
  Object.assign(model, step(model, made));
  now.steps += 1;
  compute();
  now.costs.push(cost(made));
}

function run(on) {
  now.running = on;
  $("run").textContent = on ? "Pause" : "Run";
  $("run").setAttribute("aria-pressed", on);
  clearTimeout(now.timer);
  now.shown = 2 * L;
  const frame = () => {
    if (!now.running) return;
    for (let k = 0; k < 5; k++) descend();
    draw();
    requestAnimationFrame(frame);
  };
  if (on) requestAnimationFrame(frame);
}

function reset() {
  run(false);
  model = { ...initialise(SIZES, 5), activation: $("activation").value, rate: 10 ** Number($("rate").value) };
  Object.assign(now, { steps: 0, shown: 2 * L });
  compute();
  now.costs = [cost(made)];
  draw();
}

function change() {
  model.activation = $("activation").value;
  model.rate = 10 ** Number($("rate").value);
  $("rate-value").textContent = short(model.rate);
  compute();
  draw();
}

for (const name of Object.keys(ACTIVATIONS)) $("activation").add(new Option(name));
$("mistake").add(new Option("none", ""));
for (const name of Object.keys(MISTAKES)) $("mistake").add(new Option(name));
$("step").addEventListener("click", () => { run(false); descend(); replay(); });
$("run").addEventListener("click", () => run(!now.running));
$("reset").addEventListener("click", reset);
for (const id of ["activation", "rate", "mistake"]) $(id).addEventListener("input", change);
$("plane").addEventListener("keydown", (event) => {
  const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (move) { event.preventDefault(); choose(now.example + move); }
});
document.addEventListener("keydown", (event) => {
  if (event.target.closest("select, input, button, a") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "s") $("step").click();
  if (event.key === "r") $("run").click();
});
reset();
change();
})();
