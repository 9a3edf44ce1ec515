#!/usr/bin/env node
/**
 * Classify images with an okdc bundle: onnxruntime-node, and sharp to decode.
 *
 *     node run.mjs BUNDLE IMAGE [IMAGE ...]      the five likeliest classes of each image
 *     node run.mjs BUNDLE IMAGE --json           one JSON line an image
 *     node run.mjs BUNDLE --selftest             classify the bundle's samples and compare the logits
 *     node run.mjs BUNDLE IMAGE --model int8     another of the bundle's models
 *
 * The same options, answers and exit codes as ../python/run.py. 0: done; 1: the self-test failed; 2: a file could
 * not be read, or an option is wrong.
 */

import { readFile, realpath, stat } from "node:fs/promises";
import path from "node:path";
import { parseArgs } from "node:util";

import * as bundles from "../web/bundle.mjs";
import { PIXELS, fit, toRgb } from "../web/preprocess.mjs";

const BATCH = 64;
const USAGE = `usage: run.mjs BUNDLE [IMAGE ...] [--top N] [--json] [--selftest] [--model ${bundles.MODELS.join("|")}]`;
const FORMATS = ["Jpeg", "Png", "Webp", "Nsgif"]; // libvips reads many more, even SVG; no model was trained on those

/** The bytes of a regular file: reading a pipe would block, a device has no end. Throws an Error naming the file. */
async function contents(file) {
  try {
    if (!(await stat(file)).isFile()) throw new Error("not a file");
    return await readFile(file);
  } catch (error) {
    throw new Error(`${file}: ${message(error)}`);
  }
}

/** (folder) => a function that reads a file of the bundle by its name. Throws an Error for a link out of the folder. */
async function reader(folder) {
  const root = await realpath(folder).catch(() => folder);
  return async (name) => {
    const file = path.join(folder, name), target = await realpath(file).catch(() => null);
    if (name === "manifest.json" && !target) throw new Error(`${folder} is no bundle: expected manifest.json in it`);
    if (target && !target.startsWith(path.join(root, path.sep))) bundles.refuseOutside(name);
    return contents(file);
  };
}

function message(error) {
  if (error.code === "ENOENT") return "No such file or directory";
  return error.message.split("\n")[0];
}

/** The default export of an npm package. Throws an Error with the command that installs it. */
async function load(name) {
  try {
    return (await import(name)).default;
  } catch (error) {
    if (error.code !== "ERR_MODULE_NOT_FOUND") throw error;
    const install = `ONNXRUNTIME_NODE_INSTALL=skip npm install --no-save --prefix ${import.meta.dirname}`;
    throw new Error(`${name} is missing; install it: ${install}`);
  }
}

/** (bundle, precision) => (Uint8Array of N images, N) => { logits, probabilities }, each N rows of float32. */
async function session(bundle, precision) {
  const ort = await load("onnxruntime-node");
  ort.env.logLevel = "fatal"; // it would print each error that it throws
  const model = await ort.InferenceSession.create(await bundle.model(precision), { logSeverityLevel: 4 });
  const { side, labels } = bundle;
  return async (images, count) => {
    const feeds = { image: new ort.Tensor("uint8", images, [count, side, side, 3]) };
    const answers = await model.run(feeds, ["logits", "probabilities"]);
    const rows = ({ data, dims }) => {
      if (dims.length !== 2 || dims[0] !== count || dims[1] !== labels.length) {
        throw new Error(`the model gives ${dims.join("×")}, the manifest has ${labels.length} labels`);
      }
      return Array.from({ length: count }, (_, i) => data.subarray(i * labels.length, (i + 1) * labels.length));
    };
    return { logits: rows(answers.logits), probabilities: rows(answers.probabilities) };
  };
}

/** (bundle) => (a file's bytes, its name for errors) => side×side×3 bytes by the manifest's rule. */
async function decoder(bundle) {
  const sharp = await load("sharp");
  sharp.block({ operation: ["VipsForeignLoad"] });
  sharp.unblock({ operation: FORMATS.map((name) => `VipsForeignLoad${name}`) });
  return async (bytes, name) => {
    try {
      // The contract ignores colour profiles, as Pillow does.
      const image = sharp(bytes, { limitInputPixels: PIXELS, ignoreIcc: true, failOn: "error" });
      const { space, depth } = await image.metadata();
      const deep = depth === "ushort", unconverted = ["cmyk", "grey16", "rgb16"].includes(space);
      if (unconverted) image.pipelineColourspace(space).toColourspace(space);
      const raw = image.autoOrient().raw({ depth: deep ? "ushort" : "uchar" });
      const { data, info: { width, height, channels } } = await raw.toBuffer({ resolveWithObject: true });
      const values = deep ? new Uint16Array(data.buffer, data.byteOffset, data.length / 2) : data;
      const rgb = toRgb({ data: values, width, height, channels, cmyk: space === "cmyk" });
      return fit(rgb, bundle.side, bundle.shorterSide);
    } catch (error) {
      const unknown = /unsupported image format|operation is blocked|Input Buffer is empty/.test(error.message);
      throw new Error(`${name}: ${unknown ? "not a PNG, JPEG, WebP or GIF image" : message(error)}`);
    }
  };
}

async function classify(run, decode, bundle, files, { top, json }) {
  const size = bundle.side ** 2 * 3;
  for (let start = 0; start < files.length; start += BATCH) {
    const batch = files.slice(start, start + BATCH), images = new Uint8Array(batch.length * size);
    for (const [i, file] of batch.entries()) images.set(await decode(await contents(file), file), i * size);
    const { probabilities } = await run(images, batch.length);
    for (const [i, image] of batch.entries()) {
      const best = bundles.likeliest(probabilities[i], bundle.labels, top);
      const line = best.map(({ label, probability }) => `${label} ${(100 * probability).toFixed(1)}%`).join("  ");
      console.log(json ? JSON.stringify({ image, top: best }) : bundles.shown(`${image}: ${line}`));
    }
  }
}

/** Classify the bundle's samples; true if every logit is within the model's tolerance of sample/expected.json. */
async function selftest(run, decode, bundle, read, { model, json }) {
  const { cases, tolerance } = await bundles.selftest(read, bundle, model);
  let worst = 0;
  for (const { image, logits: expected } of cases) {
    const { logits, probabilities } = await run(await decode(await read(image), image), 1);
    worst = Math.max(worst, bundles.distance(logits[0], probabilities[0], expected));
  }
  const passed = worst <= tolerance && cases.length > 0;
  const verdict = `max |d| ${bundles.scientific(worst)} (allowed ${bundles.scientific(tolerance)})`;
  (json ? console.error : console.log)(`self-test ${passed ? "passed" : "FAILED"}: ${cases.length} images, ${verdict}`);
  return passed;
}

function parseOptions() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      top: { type: "string", default: "5" },
      json: { type: "boolean", default: false },
      selftest: { type: "boolean", default: false },
      model: { type: "string", default: "float32" },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  const [folder, ...images] = positionals;
  if (values.help) return values;
  if (folder === undefined) throw new Error("expected a bundle");
  if (!images.length && !values.selftest) throw new Error("expected an image, or --selftest");
  if (!/^0*[1-9]\d*$/.test(values.top)) throw new Error(`--top is a positive number, found ${values.top}`);
  if (!bundles.MODELS.includes(values.model)) {
    throw new Error(`--model is one of ${bundles.MODELS.join(", ")}, found ${values.model}`);
  }
  return { ...values, top: Number(values.top), folder, images };
}

async function main() {
  // Node 18 has no global crypto: hashes would not be checked.
  if (Number.parseInt(process.versions.node) < 20) throw new Error(`expected Node 20, found ${process.version}`);
  const options = parseOptions();
  if (options.help) {
    console.log(USAGE);
    return 0;
  }
  const read = await reader(options.folder), bundle = await bundles.open(read);
  const run = await session(bundle, options.model), decode = await decoder(bundle);
  if (options.selftest && !(await selftest(run, decode, bundle, read, options))) return 1;
  await classify(run, decode, bundle, options.images, options);
  return 0;
}

process.stdout.on("error", (error) => { // the reader closed the pipe
  console.error(bundles.shown(`error: ${message(error)}`));
  process.exit(2);
});
try {
  process.exitCode = await main();
} catch (error) { // any library's error becomes one line
  console.error(bundles.shown(`error: ${message(error)}`));
  process.exitCode = 2;
}
