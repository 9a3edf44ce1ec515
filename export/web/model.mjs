/** A model in onnxruntime-web, and images as it takes them. */

import { PIXELS, fit } from "./preprocess.mjs";

// Of a latency: at most so many samples, each so long (a browser's clock is coarse), and no more after so many ms.
const RUNS = 15, SAMPLE_MS = 2, ENOUGH_MS = 1500;

/** onnxruntime-web on one CPU thread: several threads need HTTP headers that few servers send. */
async function runtime() {
  try {
    const ort = await import("./ort/ort.wasm.min.mjs");
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = new URL("ort/", import.meta.url).href;
    ort.env.logLevel = "fatal";
    return ort;
  } catch {
    throw new Error("onnxruntime-web is not in the folder ort/ beside this page");
  }
}

/** A model of an open bundle as a function: the bytes of an image -> { logits, probabilities }. */
export async function session(bundle, precision) {
  const ort = await runtime(), { side, labels } = bundle;
  const loaded = await ort.InferenceSession.create(await bundle.model(precision), { executionProviders: ["wasm"] });
  return async (bytes) => {
    const feeds = { image: new ort.Tensor("uint8", bytes, [1, side, side, 3]) };
    const answers = await loaded.run(feeds, ["logits", "probabilities"]);
    for (const { dims } of Object.values(answers)) {
      const whole = dims.length === 2 && dims[0] === 1 && dims[1] === labels.length;
      if (!whole) throw new Error(`The model gives ${dims.join("×")}, the manifest has ${labels.length} labels`);
    }
    return { logits: answers.logits.data, probabilities: answers.probabilities.data };
  };
}

/** A blob or a video -> { bytes: side×side×3 by the manifest's rule, width, height, ms }. The browser decodes. */
export async function prepare(bundle, source, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(source, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${name} is not an image that this browser can read`);
  }
  const { width, height } = bitmap;
  try {
    if (width * height > PIXELS) throw new Error(`${name} is too large: ${width}×${height} pixels`);
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    // An opaque canvas is black under transparent pixels; a canvas on the CPU does not round pixels.
    const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, width, height);
    const start = performance.now();
    const bytes = fit({ data, width, height, channels: 4 }, bundle.side, bundle.shorterSide);
    return { bytes, width, height, ms: performance.now() - start };
  } finally {
    bitmap.close();
  }
}

/** Milliseconds of a run -> { ms, runs }: the median of samples, after a run to warm up. */
export async function latency(run, bytes) {
  const begin = performance.now();
  await run(bytes);
  const each = Math.max(1, Math.ceil(SAMPLE_MS / Math.max(0.01, performance.now() - begin))), samples = [];
  while (samples.length < RUNS && (samples.length < 3 || performance.now() - begin < ENOUGH_MS)) {
    const start = performance.now();
    for (let i = 0; i < each; i++) await run(bytes);
    samples.push((performance.now() - start) / each);
  }
  return { ms: samples.sort((a, b) => a - b)[samples.length >> 1], runs: samples.length * each };
}
