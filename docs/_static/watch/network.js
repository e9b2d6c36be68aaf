// The forward and the backward pass of a small network, equation by equation, without a library.
//
// Matrices are arrays of rows, and an example is a column, as everywhere in deepprop. Layers are
// numbered from 1: W[1], b[1], Z[1], A[1]; entry 0 of W, b, Z is unused, and A[0] = X.
// The output is one sigmoid with binary cross-entropy.

// Matrices.

const map = (f, ...P) => P[0].map((row, i) => row.map((_, j) => f(...P.map((Q) => Q[i][j]))));
const transpose = (P) => P[0].map((_, j) => P.map((row) => row[j]));
const product = (P, Q) =>
  P.map((row) => Q[0].map((_, j) => row.reduce((sum, p, k) => sum + p * Q[k][j], 0)));
const addColumn = (P, b) => P.map((row, i) => row.map((p) => p + b[i][0]));
const hadamard = (P, Q) => map((p, q) => p * q, P, Q);
const scaled = (P, c) => map((p) => c * p, P);
const rowSums = (P) => P.map((row) => [row.reduce((sum, p) => sum + p, 0)]);
const isSquare = (P) => P.length === P[0].length;

// Activations: g, and g' as a function of (z, a).

const sigmoid = (z) => 1 / (1 + Math.exp(-z));
const ACTIVATIONS = {
  tanh: { g: Math.tanh, slope: (z, a) => 1 - a * a },
  relu: { g: (z) => Math.max(0, z), slope: (z) => (z > 0 ? 1 : 0) },
  sigmoid: { g: sigmoid, slope: (z, a) => a * (1 - a) },
};

// The equations. `p` has every quantity computed so far; m is the number of examples.

const PAGE = {
  Z: (p, l) => addColumn(product(p.W[l], p.A[l - 1]), p.b[l]),
  A: (p, l) => map(l < p.L ? p.activation.g : sigmoid, p.Z[l]),
  signal: (p) => map((a, y) => a - y, p.A[p.L], p.Y),
  dA: (p, l) => product(transpose(p.W[l + 1]), p.dZ[l + 1]),
  dZ: (p, l) => hadamard(p.dA[l], map(p.activation.slope, p.Z[l], p.A[l])),
  dW: (p, l) => scaled(product(p.dZ[l], transpose(p.A[l - 1])), 1 / p.m),
  db: (p, l) => scaled(rowSums(p.dZ[l]), 1 / p.m),
};

// The mistakes: each replaces some of the equations. The names are those of deepprop's catalogue.

const MISTAKES = {
  "1/m is missing": {
    dW: (p, l) => product(p.dZ[l], transpose(p.A[l - 1])),
    db: (p, l) => rowSums(p.dZ[l]),
  },
  "1/m is applied twice": { signal: (p) => scaled(PAGE.signal(p), 1 / p.m) },
  "1/m is applied once per layer": { dA: (p, l) => scaled(PAGE.dA(p, l), 1 / p.m) },
  "db is summed over everything": {
    db: (p, l) => {
      const sum = rowSums(p.dZ[l]).reduce((total, [row]) => total + row, 0) / p.m;
      return p.dZ[l].map(() => [sum]);
    },
  },
  "g' is left out": { dZ: (p, l) => p.dA[l] },
  "g' is taken at A": {
    dZ: (p, l) => hadamard(p.dA[l], map((a) => p.activation.slope(a, p.activation.g(a)), p.A[l])),
  },
  "g is used instead of g'": { dZ: (p, l) => hadamard(p.dA[l], p.A[l]) },
  "W is not transposed": {
    dA: (p, l) => (isSquare(p.W[l + 1]) ? product(p.W[l + 1], p.dZ[l + 1]) : PAGE.dA(p, l)),
  },
  "W is updated before dA is computed": {
    dA: (p, l) => {
      const updated = map((w, dw) => w - p.rate * dw, p.W[l + 1], p.dW[l + 1]);
      return product(transpose(updated), p.dZ[l + 1]);
    },
  },
  "A[l] is used instead of A[l-1]": {
    dW: (p, l) =>
      isSquare(p.W[l]) ? scaled(product(p.dZ[l], transpose(p.A[l])), 1 / p.m) : PAGE.dW(p, l),
  },
  "the output's g' is applied again": {
    signal: (p) => map((d, a) => d * a * (1 - a), PAGE.signal(p), p.A[p.L]),
  },
  "the sign of dZ[L] is flipped": { signal: (p) => scaled(PAGE.signal(p), -1) },
};

// Run both passes. Return every quantity.
function passes({ W, b, X, Y, activation, rate }, mistake) {
  const equation = { ...PAGE, ...(MISTAKES[mistake] || {}) };
  const L = W.length - 1;
  const p = {
    W, b, Y, L, rate, m: X[0].length, activation: ACTIVATIONS[activation],
    Z: [null], A: [X], dA: [], dZ: [], dW: [null], db: [null],
  };
  for (let l = 1; l <= L; l++) {
    p.Z[l] = equation.Z(p, l);
    p.A[l] = equation.A(p, l);
  }
  for (let l = L; l >= 1; l--) {
    if (l === L) {
      p.dZ[l] = equation.signal(p);
    } else {
      p.dA[l] = equation.dA(p, l);
      p.dZ[l] = equation.dZ(p, l);
    }
    p.dW[l] = equation.dW(p, l);
    p.db[l] = equation.db(p, l);
  }
  return p;
}

// J = 1/m sum_i L(i), with log(1 + e^z) - y z as the loss, which stays finite.
function cost(p) {
  const softplus = (z) => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z)));
  const losses = map((z, y) => softplus(z) - y * z, p.Z[p.L], p.Y);
  return losses[0].reduce((sum, loss) => sum + loss, 0) / p.m;
}

// One step of gradient descent; return the new W and b.
function step({ W, b, rate }, p) {
  const moved = (P, dP) => P.map((Q, l) => (Q ? map((q, d) => q - rate * d, Q, dP[l]) : Q));
  return { W: moved(W, p.dW), b: moved(b, p.db) };
}

// The length of the difference of two gradients, relative to the first.
function offBy(right, other) {
  let difference = 0;
  let length = 0;
  for (const name of ["dW", "db"]) {
    for (let l = 1; l <= right.L; l++) {
      map((r, o) => {
        difference += (r - o) ** 2;
        length += r ** 2;
      }, right[name][l], other[name][l]);
    }
  }
  return Math.sqrt(difference / length);
}

// Random numbers that are the same on every machine (mulberry32).
function random(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return { uniform, normal };
}

// W of variance 2 / (n_{l-1} + n_l), as Glorot; b = 0.
function initialise(sizes, seed) {
  const { normal } = random(seed);
  const W = [null];
  const b = [null];
  for (let l = 1; l < sizes.length; l++) {
    const size = Math.sqrt(2 / (sizes[l - 1] + sizes[l]));
    W[l] = Array.from({ length: sizes[l] }, () =>
      Array.from({ length: sizes[l - 1] }, () => size * normal()));
    b[l] = Array.from({ length: sizes[l] }, () => [0]);
  }
  return { W, b };
}

// Two half circles that interlock: X (2, m), Y (1, m).
function moons(m, seed) {
  const { uniform, normal } = random(seed);
  const X = [[], []];
  const Y = [[]];
  for (let i = 0; i < m; i++) {
    const upper = i % 2 === 0;
    const angle = Math.PI * uniform();
    X[0].push((upper ? Math.cos(angle) : 1 - Math.cos(angle)) - 0.5 + 0.1 * normal());
    X[1].push((upper ? Math.sin(angle) : 0.5 - Math.sin(angle)) - 0.25 + 0.1 * normal());
    Y[0].push(upper ? 1 : 0);
  }
  return { X, Y };
}

const deepprop = { ACTIVATIONS, MISTAKES, passes, cost, step, offBy, initialise, moons };
if (typeof module !== "undefined") {
  module.exports = deepprop;
} else {
  window.deepprop = deepprop;
}
