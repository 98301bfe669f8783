"use strict";
// The text tower of a run in the page: text -> token ids -> embedding -> similarity of each image.
// `page_tower` in mmlib/training/embed.py packs it: a tokenizer, steps, and weights of which every matrix is
// rounded to 8 or 16 bits, row by row. What steps hand on is a table of numbers: { rows, columns, values }.

const LONGEST = 10000; // characters of a text that are read

function unpackTower(packed) {
  const content = atob(packed.weights);
  const bytes = new Uint8Array(content.length);
  for (let i = 0; i < content.length; i++) bytes[i] = content.charCodeAt(i);
  const restored = (part) => {
    if (Array.isArray(part)) return part.map(restored);
    if (part === null || typeof part !== "object") return part;
    const [rows, columns] = part.shape;
    if (columns === undefined) return new Float32Array(bytes.buffer, part.at, rows);
    const Rounded = packed.bits === 8 ? Int8Array : Int16Array;
    const scalesAt = part.at + 4 * Math.ceil((rows * columns * packed.bits) / 32);
    return {
      rows,
      columns,
      rounded: new Rounded(bytes.buffer, part.at, rows * columns),
      scales: new Float32Array(bytes.buffer, scalesAt, rows),
    };
  };
  return {
    tokens: tokenizerOf(packed.tokenizer),
    maxTokens: packed.maxTokens,
    padded: packed.padded,
    bits: packed.bits,
    steps: restored(packed.steps),
    mean: restored(packed.mean),
    images: restored(packed.images),
  };
}

// --- texts as Python reads them

// Letters and numbers are \w there; what Python calls white space differs from \s here.
const WORDS = /[\p{L}\p{N}]+|[^\p{L}\p{N}\p{Z}\t-\r\x1c-\x1f\x85]/gu;
// Of GPT-2, as the library `tokenizers` has it.
const PIECES =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

function tokenizerOf(state) {
  if (state.kind === "bpe") return pairTokenizer(JSON.parse(state.tokenizer).model);
  const ids = new Map(state.vocabulary.map((token, id) => [token, id]));
  const unknown = ids.get("<unk>") ?? 0;
  return (text, most) => {
    const lower = text.toLowerCase();
    const tokens = state.kind === "word" ? lower.match(WORDS) ?? [] : [...lower];
    return tokens.slice(0, most).map((token) => ids.get(token) ?? unknown);
  };
}

// Byte-pair encoding: of all pairs that stand side by side, the one that was learned first is joined first.
function pairTokenizer({ vocab, merges }) {
  const place = new Map(merges.map((pair, i) => [typeof pair === "string" ? pair : pair.join(" "), i]));
  const characters = []; // one for each byte: itself where it can be seen, else one from U+0100 on
  for (let byte = 0, hidden = 256; byte < 256; byte++) {
    const seen = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    characters.push(String.fromCharCode(seen ? byte : hidden++));
  }
  const joined = (parts) => {
    for (;;) {
      let first = Infinity;
      for (let i = 1; i < parts.length; i++) first = Math.min(first, place.get(`${parts[i - 1]} ${parts[i]}`) ?? first);
      if (first === Infinity) return parts;
      const next = [];
      for (let i = 0; i < parts.length; i++) {
        const isPair = i + 1 < parts.length && place.get(`${parts[i]} ${parts[i + 1]}`) === first;
        next.push(isPair ? parts[i] + parts[++i] : parts[i]);
      }
      parts = next;
    }
  };
  return (text, most) => {
    const ids = [];
    for (const [piece] of text.matchAll(PIECES)) {
      if (ids.length >= most) break;
      const bytes = [...new TextEncoder().encode(piece)];
      ids.push(...joined(bytes.map((byte) => characters[byte])).map((token) => vocab[token] + 1)); // 0 is padding
    }
    return ids.slice(0, most);
  };
}

function tokenIds(tower, text) {
  const whole = text.slice(0, LONGEST).replace(/\p{Cs}/gu, "\ufffd"); // halves of a pair are no characters
  return tower.tokens(whole, tower.maxTokens);
}

// --- numbers

function table(rows, columns, value) {
  const values = new Float32Array(rows * columns);
  if (value) for (let r = 0, i = 0; r < rows; r++) for (let c = 0; c < columns; c++) values[i++] = value(r, c);
  return { rows, columns, values };
}

function inOrder(steps, given) {
  return steps.reduce((value, [name, ...rest]) => STEPS[name](value, ...rest), given);
}

function each(x, change) {
  return { ...x, values: x.values.map(change) };
}

const sigmoid = (v) => 1 / (1 + Math.exp(-v));

// Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26: to 1.5e-7.
function erf(v) {
  const t = 1 / (1 + 0.3275911 * Math.abs(v));
  const series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(v) * (1 - series * Math.exp(-v * v));
}

function linear(x, weight, bias) {
  const { rows, columns, rounded, scales } = weight;
  return table(x.rows, rows, (r, out) => {
    let sum = 0;
    for (let c = 0, i = r * columns, w = out * columns; c < columns; c++) sum += x.values[i++] * rounded[w++];
    return sum * scales[out] + (bias ? bias[out] : 0);
  });
}

// Each row's queries, head by head, read the values of the keys that they are like.
function attend(x, heads, scale, unit, toQueries, toKeys, toValues) {
  const [queries, keys, values] = [toQueries, toKeys, toValues].map((steps) => inOrder(steps, x));
  const read = table(x.rows, values.columns);
  const width = queries.columns / heads;
  for (let r = 0; r < x.rows; r++) {
    for (let from = 0; from < queries.columns; from += width) {
      const query = queries.values.subarray(r * queries.columns + from, r * queries.columns + from + width);
      const sharpness = unit ? scale / Math.max(Math.hypot(...query), 1e-12) : scale;
      const scores = table(1, keys.rows, (_, k) => {
        let sum = 0;
        for (let c = 0; c < width; c++) sum += query[c] * keys.values[k * keys.columns + from + c];
        return sum * sharpness;
      }).values;
      const highest = scores.reduce((a, b) => Math.max(a, b));
      const shares = scores.map((score) => Math.exp(score - highest));
      const total = shares.reduce((a, b) => a + b);
      for (let k = 0; k < keys.rows; k++) {
        const share = shares[k] / total;
        for (let c = from; c < from + width; c++) {
          read.values[r * read.columns + c] += share * values.values[k * values.columns + c];
        }
      }
    }
  }
  return read;
}

// As in torch: gates of reset, update and candidate, in this order.
function gru(x, inWeight, inBias, stateWeight, stateBias) {
  const width = stateWeight.columns;
  const given = linear(x, inWeight, inBias);
  const states = table(x.rows, width);
  let state = table(1, width);
  for (let r = 0; r < x.rows; r++) {
    const own = given.values.subarray(r * 3 * width, (r + 1) * 3 * width);
    const before = linear(state, stateWeight, stateBias).values;
    state = table(1, width, (_, c) => {
      const reset = sigmoid(own[c] + before[c]);
      const update = sigmoid(own[width + c] + before[width + c]);
      const candidate = Math.tanh(own[2 * width + c] + reset * before[2 * width + c]);
      return (1 - update) * candidate + update * state.values[c];
    });
    states.values.set(state.values, r * width);
  }
  return states;
}

function norm(x, weight, bias) {
  const made = table(x.rows, x.columns);
  for (let r = 0; r < x.rows; r++) {
    const row = x.values.subarray(r * x.columns, (r + 1) * x.columns);
    const mean = row.reduce((a, b) => a + b) / x.columns;
    const variance = row.reduce((sum, v) => sum + (v - mean) ** 2, 0) / x.columns;
    row.forEach((v, c) => {
      made.values[r * x.columns + c] = ((v - mean) / Math.sqrt(variance + 1e-5)) * weight[c] + bias[c];
    });
  }
  return made;
}

function overRows(x, first, join) {
  return table(1, x.columns, (_, c) => {
    let value = first;
    for (let r = 0; r < x.rows; r++) value = join(value, x.values[r * x.columns + c]);
    return value;
  });
}

const STEPS = {
  embed: (ids, tokens, positions) =>
    table(ids.length, tokens.columns, (r, c) => entry(tokens, ids[r], c) + (positions ? entry(positions, r, c) : 0)),
  constant: (_, slots) => table(slots.rows, slots.columns, (r, c) => entry(slots, r, c)),
  linear,
  norm,
  attend,
  gru,
  relu: (x) => each(x, (v) => Math.max(v, 0)),
  gelu: (x) => each(x, (v) => 0.5 * v * (1 + erf(v / Math.SQRT2))),
  add: (x, ...steps) => {
    const more = inOrder(steps, x).values;
    return each(x, (v, i) => v + more[i]);
  },
  join: (x, ...parts) => {
    const [left, right] = parts.map((steps) => inOrder(steps, x));
    const value = (r, c) =>
      c < left.columns ? left.values[r * left.columns + c] : right.values[r * right.columns + c - left.columns];
    return table(left.rows, left.columns + right.columns, value);
  },
  reverse: (x) => table(x.rows, x.columns, (r, c) => x.values[(x.rows - 1 - r) * x.columns + c]),
  mean: (x) => each(overRows(x, 0, (a, b) => a + b), (v) => v / x.rows),
  max: (x) => overRows(x, -Infinity, Math.max),
};

function entry(matrix, row, column) {
  return matrix.rounded[row * matrix.columns + column] * matrix.scales[row];
}

// The embedding of a text, of unit length.
function embedText(tower, text) {
  const ids = tokenIds(tower, text);
  const rows = tower.padded ? tower.maxTokens : Math.max(ids.length, 1);
  const padded = [...ids, ...Array(rows - ids.length).fill(0)];
  const embedding = inOrder(tower.steps, padded);
  const length = Math.max(Math.hypot(...embedding.values), 1e-12);
  return each(embedding, (v) => v / length);
}

// The images that are most like a text: [{ item, similarity }], best first.
function nearestImages(tower, text, most) {
  const embedding = embedText(tower, text);
  const toMean = tower.mean.reduce((sum, v, i) => sum + v * embedding.values[i], 0);
  const toImages = linear(embedding, tower.images, null).values; // beside the mean
  const found = Array.from(toImages, (more, item) => ({ item, similarity: toMean + more }));
  return found.sort((x, y) => y.similarity - x.similarity).slice(0, most);
}
