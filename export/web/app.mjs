/**
 * The page of a bundle: the bundle lies in bundle/, onnxruntime-web in ort/, and the model runs in the browser.
 *
 * Jobs (an image, several, a picture of the camera, the self-test, another model) run one after the other: a session
 * takes one batch at a time.
 */

import * as answers from "./answers.mjs";
import * as bundles from "./bundle.mjs";
import { Camera } from "./camera.mjs";
import { $, element, painted, percent } from "./dom.mjs";
import { describe, describeConfusions, describeThreshold } from "./facts.mjs";
import { latency, prepare, session } from "./model.mjs";
import * as several from "./several.mjs";

const TOP = 5;
const MOST = 2000; // images at once
const DRAWN_MS = 100; // between two looks of the browser at a table that grows

let bundle; // of bundle.mjs
let precision, run; // of the model that answers: its name; (bytes of an image) => { logits, probabilities }
let threshold = null; // below which an answer is "not sure"; null: there is none
let current = null; // the image on the page, as { blob, name }: another model classifies it again
let files = [], table = []; // the several images, and their rows: another model makes these again, too
let halted = false; // the several images are not gone on with
let queue = Promise.resolve();
let camera;

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

/** Another model answers from here on. One that cannot be had leaves the earlier one, and the choice says so. */
async function load(name) {
  try {
    run = await session(bundle, name);
    precision = name;
  } finally {
    if (precision) $("model").value = precision;
  }
}

async function classify(blob, name) {
  const { bytes, width, height, ms } = await prepare(bundle, blob, name);
  const { probabilities } = await run(bytes);
  current = { blob, name };
  preview(blob, name, Math.max(width, height) < 128);
  show({ bytes, width, height, ms, probabilities });
  $("latency").textContent = "…";
  await painted();
  const measured = await latency(run, bytes);
  $("latency").textContent = milliseconds(measured.ms);
  $("runs").textContent = `, median of ${measured.runs} runs`;
}

/** A picture of the camera, whose latency is that of one run. */
async function glance(video) {
  const prepared = await prepare(bundle, video, "The camera's picture");
  const start = performance.now();
  const { probabilities } = await run(prepared.bytes);
  if (!camera.on) return; // an image was chosen meanwhile
  show({ ...prepared, probabilities });
  $("latency").textContent = milliseconds(performance.now() - start);
}

/** The last picture of the camera stays on the page, as an image. */
async function still(video) {
  const canvas = Object.assign(element("canvas"), { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

/**
 * Several images, a row each; one that cannot be read is a row with the reason. It ends where others were chosen since:
 * their table takes the place of this one.
 */
async function classifyAll(chosen) {
  if (chosen !== files) return;
  table = [];
  halted = false;
  several.begin(chosen.length, threshold);
  $("halt").hidden = false;
  $("save").disabled = true;
  try {
    for (let drawn = -Infinity; table.length < chosen.length && !halted && chosen === files; ) {
      const file = chosen[table.length], row = await rowOf(file);
      table.push(row);
      several.add(row, () => enqueue(() => classify(file, file.name)));
      several.say(table, chosen.length);
      if (performance.now() - drawn < DRAWN_MS) continue;
      await painted();
      drawn = performance.now();
    }
  } finally {
    $("halt").hidden = true;
    $("save").disabled = table.length === 0;
  }
}

async function rowOf(file) {
  try {
    const { probabilities } = await run((await prepare(bundle, file, file.name)).bytes);
    return several.answered(file.name, bundles.likeliest(probabilities, bundle.labels, 2), threshold, precision);
  } catch (error) {
    return { name: file.name, error: error.message, model: precision };
  }
}

async function selftest() {
  const verdict = $("verdict");
  verdict.className = "";
  verdict.textContent = "Running…";
  try {
    const { cases, tolerance } = await bundles.selftest(read, bundle, precision);
    let worst = 0;
    for (const { image, logits: expected } of cases) {
      const { logits, probabilities } = await run((await prepare(bundle, new Blob([await read(image)]), image)).bytes);
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

/** The answer to an image, and the model's input. */
function show({ bytes, width, height, ms, probabilities }) {
  const likeliest = bundles.likeliest(probabilities, bundle.labels, TOP);
  $("results").replaceChildren(...likeliest.map(row));
  const [{ probability }] = likeliest, unsure = threshold !== null && probability < threshold;
  $("unsure").textContent = unsure ? `Not sure: ${percent(probability)} is below ${percent(threshold)}` : "";
  showInput(bytes);
  $("from").textContent = `${width} × ${height}`;
  $("to").textContent = `${bundle.side} × ${bundle.side}`;
  $("prepared").textContent = milliseconds(ms);
  $("runs").textContent = "";
  $("seen").hidden = false;
}

function row({ label, probability }) {
  const share = percent(probability);
  const bar = element("div", "bar"), track = element("div", "track");
  bar.style.width = `${100 * probability}%`;
  track.append(bar);
  const line = element("li");
  line.dataset.probability = probability;
  line.append(element("span", "label", label), element("span", "share", share), track);
  return line;
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

function say(state, text = "") {
  document.body.dataset.state = state;
  $("status").textContent = text;
}

/** Run a job after the earlier ones, without a word. */
function after(job) {
  const done = queue.then(job);
  queue = done.catch(() => null);
  return done;
}

/** Run a job after the earlier ones. The page shows its error and stays usable. */
function enqueue(job) {
  return after(async () => {
    say("busy");
    try {
      await job();
      say("ready");
    } catch (error) {
      say("refused", error.message);
    }
  });
}

// --------------------------------------------------------------------------------------------------------------------
// The start

/** answers.json. Without it, or where it is damaged, the page works and says so. */
async function describeAnswers() {
  try {
    const read = await answers.read(bundle);
    if (read === null) throw new Error("This bundle has no answers.json");
    threshold = read.notSure?.threshold ?? null;
    describeThreshold(read);
    describeConfusions(read, bundle.labels);
  } catch (error) {
    threshold = null;
    $("counted").textContent = error.message;
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
    button.onclick = () => {
      camera.stop();
      enqueue(() => classify(blob, image));
    };
    $("samples").append(button);
  }
}

/** Images that were dropped or chosen: one is shown, several become a table. */
function take(chosen) {
  if (!chosen.length) return;
  camera.stop();
  if (chosen.length === 1) enqueue(() => classify(chosen[0], chosen[0].name));
  else if (chosen.length > MOST) say("refused", `${chosen.length} images are too many at once: ${MOST} at most`);
  else {
    files = chosen;
    enqueue(() => classifyAll(chosen));
  }
}

function watch() {
  const video = $("live");
  camera = new Camera(video, {
    look: () => after(() => (camera.on ? glance(video) : null)),
    changed: (on) => {
      $("camera").textContent = on ? "Stop the camera" : "Use the camera";
      document.body.classList.toggle("watching", on);
      video.hidden = !on;
      $("preview").hidden = on || !current;
      $("results").ariaLive = on ? "off" : "polite"; // several answers a second are not to be read out
      if (!on) return;
      $("name").textContent = "Camera";
      say("ready");
    },
    failed: (error) => say("refused", error.message),
  });
  $("camera").onclick = async () => {
    if (camera.on) {
      const blob = await still(video);
      camera.stop();
      if (blob) enqueue(() => classify(blob, "camera.png"));
    } else await camera.start().catch((error) => say("refused", error.message));
  };
}

function listen() {
  for (const id of ["file", "selftest", "camera"]) $(id).disabled = false;
  $("file").onchange = ({ target }) => {
    take([...target.files]);
    target.value = ""; // the same file can be chosen again
  };
  $("selftest").onclick = () => enqueue(selftest);
  $("save").onclick = () => several.save(table);
  $("halt").onclick = () => (halted = true);
  $("model").onchange = ({ target: { value } }) => enqueue(async () => {
    await load(value);
    $("verdict").className = $("verdict").textContent = "";
    if (current && !camera.on) await classify(current.blob, current.name);
    if (files.length) await classifyAll(files);
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
  describe(bundle);
  if (!globalThis.crypto?.subtle) {
    $("hashes").textContent = "The files' hashes were not checked: browsers hash over https and on localhost only.";
  }
  await describeAnswers();
  await load(bundle.models[0]);
  watch();
  await samples();
  listen();
  say("ready");
} catch (error) {
  say("error", error.message);
}
