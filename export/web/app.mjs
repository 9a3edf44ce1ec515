/**
 * The page of a bundle: the bundle lies in bundle/, onnxruntime-web in ort/, and the model runs in the browser.
 *
 * Jobs (an image, the self-test, another model) run one after the other: a session takes one batch at a time.
 */

import * as bundles from "./bundle.mjs";
import { PIXELS, fit } from "./preprocess.mjs";

const TOP = 5;
// Of a latency: at most so many samples, each so long (a browser's clock is coarse), and no more after so many ms.
const RUNS = 15, SAMPLE_MS = 2, ENOUGH_MS = 1500;
const $ = (id) => document.getElementById(id);

let bundle, run; // of bundle.mjs; (bytes of an image) => { logits, probabilities } of the chosen model
let current = null; // the image on the page, as { blob, name }: another model classifies it again
let queue = Promise.resolve();

/** The bytes of a file of the bundle. Throws an Error with the reason, which the page shows. */
async function read(name) {
  const address = new URL(`bundle/${name.split("/").map(encodeURIComponent).join("/")}`, import.meta.url);
  const answer = await fetch(address, { cache: "no-cache" }).catch(() => {
    throw new Error(`bundle/${name} cannot be read: is the server still running?`);
  });
  if (answer.ok) return new Uint8Array(await answer.arrayBuffer());
  if (name === "manifest.json") throw new Error("There is no bundle beside this page: expected bundle/manifest.json");
  throw new Error(`bundle/${name} cannot be read: the server says ${answer.status}`);
}

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

async function choose(precision) {
  const ort = await runtime(), { side, labels } = bundle;
  const session = await ort.InferenceSession.create(await bundle.model(precision), { executionProviders: ["wasm"] });
  run = async (bytes) => {
    const feeds = { image: new ort.Tensor("uint8", bytes, [1, side, side, 3]) };
    const answers = await session.run(feeds, ["logits", "probabilities"]);
    for (const { dims } of Object.values(answers)) {
      const whole = dims.length === 2 && dims[0] === 1 && dims[1] === labels.length;
      if (!whole) throw new Error(`The model gives ${dims.join("×")}, the manifest has ${labels.length} labels`);
    }
    return { logits: answers.logits.data, probabilities: answers.probabilities.data };
  };
}

/** An image that the browser decodes -> { bytes: side×side×3 by the manifest's rule, width, height, ms }. */
async function prepare(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
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

/** Milliseconds of a run: the median of samples, after a run to warm up. */
async function latency(bytes) {
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

async function classify(blob, name) {
  const { bytes, width, height, ms } = await prepare(blob, name);
  const { probabilities } = await run(bytes);
  current = { blob, name };
  preview(blob, name, Math.max(width, height) < 128);
  $("results").replaceChildren(...bundles.likeliest(probabilities, bundle.labels, TOP).map(row));
  showInput(bytes);
  $("from").textContent = `${width} × ${height}`;
  $("to").textContent = `${bundle.side} × ${bundle.side}`;
  $("prepared").textContent = milliseconds(ms);
  $("latency").textContent = "…";
  $("runs").textContent = "";
  $("seen").hidden = false;
  await painted();
  const measured = await latency(bytes);
  $("latency").textContent = milliseconds(measured.ms);
  $("runs").textContent = `, median of ${measured.runs} runs`;
}

async function selftest() {
  const verdict = $("verdict");
  verdict.className = "";
  verdict.textContent = "Running…";
  try {
    const { cases, tolerance } = await bundles.selftest(read, bundle, $("model").value);
    let worst = 0;
    for (const { image, logits: expected } of cases) {
      const { logits, probabilities } = await run((await prepare(new Blob([await read(image)]), image)).bytes);
      worst = Math.max(worst, bundles.distance(logits, probabilities, expected));
    }
    const passed = worst <= tolerance && cases.length > 0;
    const actual = element("span", "", `max |d| ${bundles.scientific(worst)}`);
    const allowed = element("span", "", `(allowed ${bundles.scientific(tolerance)})`);
    verdict.className = passed ? "passed" : "failed";
    const outcome = `Self-test ${passed ? "passed" : "FAILED"}: ${cases.length} images, `;
    verdict.replaceChildren(outcome, actual, " ", allowed);
  } catch (error) {
    verdict.className = "failed";
    verdict.textContent = `Self-test FAILED: ${error.message}`;
  }
}

// --------------------------------------------------------------------------------------------------------------------
// The parts of the page

function row({ label, probability }) {
  const share = `${(100 * probability).toFixed(1)} %`;
  const bar = element("div", "bar"), track = element("div", "track");
  bar.style.width = `${100 * probability}%`;
  track.append(bar);
  const line = element("li");
  line.dataset.probability = probability;
  line.append(element("span", "label", label), element("span", "share", share), track);
  return line;
}

function element(kind, className = "", text = "") {
  return Object.assign(document.createElement(kind), { className, textContent: text });
}

function preview(blob, name, small) {
  const picture = $("preview");
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(blob);
  picture.alt = name;
  picture.className = small ? "pixelated" : "";
  picture.hidden = false;
  $("name").textContent = name;
}

/** Draw the model's input as an image. */
function showInput(bytes) {
  const canvas = $("pixels"), { side } = bundle, rgba = new Uint8ClampedArray(side * side * 4).fill(255);
  for (let i = 0, o = 0; i < bytes.length; i += 3, o += 4) rgba.set(bytes.subarray(i, i + 3), o);
  canvas.width = canvas.height = side;
  canvas.className = side < 72 ? "pixelated" : "";
  canvas.getContext("2d").putImageData(new ImageData(rgba, side, side), 0, 0);
}

function milliseconds(ms) {
  return `${ms >= 10 ? ms.toFixed(0) : ms >= 1 ? ms.toFixed(1) : ms.toFixed(2)} ms`;
}

function inBytes(count) {
  return count >= 1e6 ? `${(count / 1e6).toFixed(1)} MB` : `${Math.ceil(count / 1e3)} kB`;
}

/** Wait until the browser has drawn: measuring then blocks this thread. A page in the background is not drawn. */
function painted() {
  return new Promise((done) => {
    setTimeout(done, 50);
    requestAnimationFrame(() => setTimeout(done));
  });
}

function say(state, text = "") {
  document.body.dataset.state = state;
  $("status").textContent = text;
}

/** Run a job after the earlier ones. The page shows its error and stays usable. */
function enqueue(job) {
  queue = queue.then(async () => {
    say("busy");
    try {
      await job();
      say("ready");
    } catch (error) {
      say("refused", error.message);
    }
  });
  return queue;
}

// --------------------------------------------------------------------------------------------------------------------
// The start

function describe() {
  const { manifest, labels, models } = bundle, { accuracy = {}, files } = manifest;
  const size = (precision) => Number(files[manifest.models[precision]?.file]?.bytes ?? NaN);
  const top1 = (precision) => Number(manifest.models[precision]?.top1_pct);
  const summary = [`${labels.length} classes`];
  if (top1("float32") >= 0) {
    const count = Number(accuracy.images).toLocaleString("en");
    summary.push(`top-1 ${top1("float32").toFixed(2)} % on ${count} ${accuracy.split} images`);
  }
  if (size("float32") >= 0) summary.push(inBytes(size("float32")));
  $("facts").textContent = summary.join(" · ");
  const names = [manifest.architecture, manifest.dataset].filter((word) => typeof word === "string");
  document.title = $("title").textContent = names.join(" · ") || "Image classifier";
  for (const precision of models) {
    const parts = [precision];
    if (top1(precision) >= 0) parts.push(`${top1(precision).toFixed(2)} %`);
    if (size(precision) >= 0) parts.push(inBytes(size(precision)));
    $("model").append(Object.assign(element("option", "", parts.join(" · ")), { value: precision }));
  }
  $("choice").hidden = models.length < 2;
  if (!globalThis.crypto?.subtle) {
    $("hashes").textContent = "The files' hashes were not checked: browsers hash over https and on localhost only.";
  }
}

/** The bundle's samples as buttons. Without samples the page works, and its self-test names the missing file. */
async function samples() {
  const { cases } = await bundles.selftest(read, bundle, bundle.models[0]).catch(() => ({ cases: [] }));
  for (const { image, label } of cases) {
    const blob = await read(image).then((content) => new Blob([content]), () => null);
    if (!blob) continue;
    const text = `Sample of class ${bundle.labels[label] ?? "unknown"}`, button = element("button");
    const picture = Object.assign(element("img"), { src: URL.createObjectURL(blob), alt: text });
    picture.onload = () => picture.classList.toggle("pixelated", picture.naturalWidth < 56);
    button.append(picture);
    button.type = "button";
    button.title = text;
    button.onclick = () => enqueue(() => classify(blob, image));
    $("samples").append(button);
  }
}

function listen() {
  const take = (files) => files.length && enqueue(() => classify(files[0], files[0].name));
  $("file").disabled = $("selftest").disabled = false;
  $("file").onchange = ({ target }) => {
    take([...target.files]);
    target.value = ""; // the same file can be chosen again
  };
  $("selftest").onclick = () => enqueue(selftest);
  $("model").onchange = ({ target }) => enqueue(async () => {
    await choose(target.value);
    $("verdict").className = $("verdict").textContent = "";
    if (current) await classify(current.blob, current.name);
  });
  document.ondragover = (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  };
  document.ondragleave = ({ relatedTarget }) => relatedTarget ?? document.body.classList.remove("over");
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    take([...event.dataTransfer.files]);
  };
}

try {
  bundle = await bundles.open(read);
  if (!bundle.models.length) throw new Error("manifest.json names no model");
  describe();
  await choose(bundle.models[0]);
  await samples();
  listen();
  say("ready");
} catch (error) {
  say("error", error.message);
}
