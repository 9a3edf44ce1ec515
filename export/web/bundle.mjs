/**
 * A bundle as its manifest describes it, for Node and for browsers. A manifest that these functions do not know is an
 * Error with the reason.
 *
 * The caller passes `read(name)`: it gives the bytes of a file of the bundle, or throws an Error with the reason.
 */

export const RULE = "exif-upright, rgb, shorter side to size (pillow bilinear, antialiased), centre crop";
export const LARGER = "exif-upright, rgb, shorter side to shorter_side (pillow bilinear, antialiased), centre crop";
export const MODELS = ["float32", "int8", "float16"];
const LARGEST = 4096; // pixels of a side of a model's input
// The key "location" as protobuf writes it: such a model has weights in other files, which it names.
const EXTERNAL = /(\x0a|\x8a[\x80-\xff]*[\x00-\x7f])(\x08|\x88[\x80-\xff]*[\x00-\x7f])location$/;

/** Reads and checks the manifest -> { manifest, labels, models, side, shorterSide, file(name), model(precision) }. */
export async function open(read) {
  const manifest = object(await read("manifest.json"), "manifest.json");
  if (manifest.schema !== 1) {
    throw new Error(`manifest.json: schema ${JSON.stringify(manifest.schema)}, this client reads schema 1`);
  }
  const { input: spec, models, labels, files } = manifest;
  const hasLabels = Array.isArray(labels) && labels.length > 0 && labels.every((label) => typeof label === "string");
  if (!isObject(spec) || !isObject(models) || !isObject(files) || !hasLabels) {
    throw new Error("manifest.json is damaged: expected input, models, labels and files");
  }
  const rule = [spec.name, spec.layout, spec.dtype, spec.colour, spec.resize];
  const supported = ["image", "NHWC", "uint8", "RGB", "shorter_side" in spec ? LARGER : RULE];
  if (rule.some((word, i) => word !== supported[i])) {
    throw new Error(`manifest.json: this client does not know the input ${JSON.stringify(spec)}`);
  }
  if (manifest.normalisation?.in_graph !== true) {
    throw new Error("manifest.json: this client knows models that normalise inside (normalisation.in_graph true)");
  }
  const side = spec.height, shorterSide = "shorter_side" in spec ? spec.shorter_side : side;
  const square = Number.isInteger(side) && Number.isInteger(shorterSide) && spec.width === side;
  if (!square || side < 1 || shorterSide < side || shorterSide > LARGEST) {
    throw new Error(`manifest.json: expected a square input of 1 to ${LARGEST} pixels, found ${JSON.stringify(spec)}`);
  }
  /** The bytes of a file of the bundle. Throws an Error if their hash is not the manifest's. */
  async function file(name) {
    const bytes = await read(inside(name)), expected = Object.hasOwn(files, name) ? files[name]?.sha256 : "none";
    const actual = await sha256(bytes);
    if (actual !== null && actual !== expected) {
      throw new Error(`${name} is not the file of the manifest (sha256 ${String(expected).slice(0, 12)})`);
    }
    return bytes;
  }
  /** The bytes of the ONNX file of a precision. */
  async function model(precision) {
    if (!Object.hasOwn(models, precision)) {
      throw new Error(`manifest.json: no ${precision} model, there is ${Object.keys(models).join(", ")}`);
    }
    const bytes = await file(String(models[precision]?.file));
    if (hasExternalData(bytes)) {
      throw new Error(`${models[precision].file} has weights in other files (external data), which no bundle has`);
    }
    return bytes;
  }
  const precisions = MODELS.filter((name) => Object.hasOwn(models, name));
  return { manifest, labels, models: precisions, side, shorterSide, file, model };
}

/** The bundle's cases for a model -> { cases: [{ image, label, logits }], tolerance }; `image` is a name for `read`. */
export async function selftest(read, bundle, precision) {
  const name = "sample/expected.json", expected = object(await read(name), name);
  const model = expected.models?.[precision];
  const isRow = (row) => Array.isArray(row) && row.length === bundle.labels.length && row.every(Number.isFinite);
  const complete = Array.isArray(expected.cases) &&
    Number.isFinite(model?.tolerance) && Array.isArray(model?.logits) &&
    expected.cases.length === model.logits.length && model.logits.every(isRow) &&
    expected.cases.every((row) => typeof row?.image === "string");
  if (!complete) throw new Error(`${name} is damaged: expected cases, and the ${precision} model's tolerance and logits`);
  const cases = expected.cases.map(({ image, label }, i) => {
    return { image: `sample/${inside(image)}`, label, logits: model.logits[i] };
  });
  return { cases, tolerance: model.tolerance };
}

/** The largest difference of a case: of its logits to the expected ones, and of its probabilities' sum to one. */
export function distance(logits, probabilities, expected) {
  const differences = [...logits].map((z, i) => Math.abs(z - expected[i]));
  differences.push(Math.abs(probabilities.reduce((a, b) => a + b, 0) - 1));
  return Math.max(...differences.map((d) => (Number.isNaN(d) ? Infinity : d)));
}

/** An image's probabilities -> the `top` likeliest classes, as { label, probability }. */
export function likeliest(row, labels, top) {
  if (!row.every(Number.isFinite)) throw new Error("the model gives probabilities that are not finite");
  const order = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, top);
  return order.map((c) => ({ label: labels[c], probability: row[c] }));
}

/** The name of a file that the bundle names. Throws an Error if it leads out of the folder. */
export function inside(name) {
  if (/^$|^\/|[\\:\0-\x1f]|(^|\/)\.\.(\/|$)/.test(name)) refuseOutside(name);
  return name;
}

export function refuseOutside(name) {
  throw new Error(`the bundle names a file outside itself: ${JSON.stringify(name)}`);
}

/** SHA-256 in hexadecimal; null where a browser cannot hash, which is outside https and localhost. */
export async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((b) => b.toString(16).padStart(2, "0")).join("");
}

function hasExternalData(bytes) {
  const [l, o] = [..."lo"].map((letter) => letter.charCodeAt(0));
  for (let i = bytes.indexOf(l); i !== -1; i = bytes.indexOf(l, i + 1)) {
    if (bytes[i + 1] !== o) continue;
    if (EXTERNAL.test(String.fromCharCode(...bytes.subarray(Math.max(0, i - 24), i + 8)))) return true;
  }
  return false;
}

/** A number with one decimal and an exponent of two digits, as Python writes 1.0e-06. */
export function scientific(x) {
  return x.toExponential(1).replace(/e([+-])(\d)$/, "e$10$2");
}

/** A JSON object of a file. Throws an Error for anything else. */
export function object(bytes, name) {
  let value;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch (error) {
    throw new Error(`${name} is not JSON: ${error.message}`);
  }
  if (!isObject(value)) throw new Error(`${name}: expected a JSON object`);
  return value;
}

function isObject(x) {
  return typeof x === "object" && x !== null && !Array.isArray(x);
}

/** One line that no terminal obeys: a class or a file may be called anything. */
export function shown(text) {
  const hex = (code, digits) => code.toString(16).padStart(digits, "0");
  const escaped = (code) => (code < 256 ? `\\x${hex(code, 2)}` : `\\u${hex(code, 4)}`);
  const unsafe = /[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;
  return text.replace(unsafe, (letter) => escaped(letter.charCodeAt(0)));
}
