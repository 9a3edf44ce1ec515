#!/usr/bin/env node
/**
 * Classify images with an okdc bundle: onnxruntime-node, and sharp to decode.
 *
 *     node run.mjs BUNDLE IMAGE [IMAGE ...]      the five likeliest classes of each image
 *     node run.mjs BUNDLE IMAGE --json           one JSON line an image
 *     node run.mjs BUNDLE --selftest             replay the bundle's own cases
 *     node run.mjs BUNDLE IMAGE --model int8     another of the bundle's models
 *
 * The same options, answers and exit codes as ../python/run.py. 0: done; 1: the self-test failed; 2: something could
 * not be read.
 */

import { readFile, realpath, stat } from "node:fs/promises";
import path from "node:path";
import { parseArgs } from "node:util";

import * as bundles from "../web/bundle.mjs";
import { PIXELS, fit, toRgb } from "../web/preprocess.mjs";

const BATCH = 64;
const USAGE = `usage: run.mjs BUNDLE [IMAGE ...] [--top N] [--json] [--selftest] [--model ${bundles.MODELS.join("|")}]`;
const FORMATS = ["Jpeg", "Png", "Webp", "Nsgif"]; // libvips reads far more, down to SVG: nothing that a model saw

/** A file as bytes. The Error says what the system said. A pipe would be waited for, a device has no end. */
async function contents(file) {
  try {
    if (!(await stat(file)).isFile()) throw new Error("not a file");
    return await readFile(file);
  } catch (error) {
    throw new Error(`${file}: ${words(error)}`);
  }
}

/** Files of a bundle by their names. An Error where one leads out of the folder by a link. */
async function reader(folder) {
  const home = await realpath(folder).catch(() => folder);
  return async (name) => {
    const file = path.join(folder, name), real = await realpath(file).catch(() => null);
    if (name === "manifest.json" && !real) throw new Error(`${folder} is no bundle: expected manifest.json in it`);
    if (real && !real.startsWith(path.join(home, path.sep))) bundles.leadsOut(name);
    return contents(file);
  };
}

function words(error) {
  if (error.code === "ENOENT") return "No such file or directory";
  return error.message.split("\n")[0];
}

/** A package that npm installs, or the line that says how. */
async function need(name) {
  try {
    return (await import(name)).default;
  } catch (error) {
    if (error.code !== "ERR_MODULE_NOT_FOUND") throw error;
    const install = `ONNXRUNTIME_NODE_INSTALL=skip npm install --no-save --prefix ${import.meta.dirname}`;
    throw new Error(`${name} is missing; install it: ${install}`);
  }
}

/** The bundle's model in a session -> (images as one Uint8Array, N) => { logits, probabilities } as lists of rows. */
async function session(bundle, precision) {
  const ort = await need("onnxruntime-node");
  ort.env.logLevel = "fatal"; // it throws what it would print as well
  const opened = await ort.InferenceSession.create(await bundle.model(precision), { logSeverityLevel: 4 });
  const { side, labels } = bundle;
  return async (images, count) => {
    const feeds = { image: new ort.Tensor("uint8", images, [count, side, side, 3]) };
    const answers = await opened.run(feeds, ["logits", "probabilities"]);
    const rows = ({ data, dims }) => {
      if (dims.length !== 2 || dims[0] !== count || dims[1] !== labels.length) {
        throw new Error(`the model gives ${dims.join("×")}, the manifest has ${labels.length} labels`);
      }
      return Array.from({ length: count }, (_, i) => data.subarray(i * labels.length, (i + 1) * labels.length));
    };
    return { logits: rows(answers.logits), probabilities: rows(answers.probabilities) };
  };
}

/** (file's bytes, its name for errors) -> side×side×3 bytes, by the manifest's rule. */
async function decoder(bundle) {
  const sharp = await need("sharp");
  sharp.block({ operation: ["VipsForeignLoad"] });
  sharp.unblock({ operation: FORMATS.map((name) => `VipsForeignLoad${name}`) });
  return async (bytes, name) => {
    try {
      // Pillow leaves colour profiles alone, so they are ignored here too.
      const image = sharp(bytes, { limitInputPixels: PIXELS, ignoreIcc: true, failOn: "error" });
      const { space, depth } = await image.metadata();
      const deep = depth === "ushort", own = ["cmyk", "grey16", "rgb16"].includes(space);
      if (own) image.pipelineColourspace(space).toColourspace(space);
      const raw = image.autoOrient().raw({ depth: deep ? "ushort" : "uchar" });
      const { data, info: { width, height, channels } } = await raw.toBuffer({ resolveWithObject: true });
      const values = deep ? new Uint16Array(data.buffer, data.byteOffset, data.length / 2) : data;
      const rgb = toRgb({ data: values, width, height, channels, cmyk: space === "cmyk" });
      return fit(rgb, bundle.side, bundle.shorterSide);
    } catch (error) {
      const unknown = /unsupported image format|operation is blocked|Input Buffer is empty/.test(error.message);
      throw new Error(`${name}: ${unknown ? "not a PNG, JPEG, WebP or GIF image" : words(error)}`);
    }
  };
}

async function classify(run, decode, bundle, files, { top, json }) {
  const size = bundle.side ** 2 * 3;
  for (let start = 0; start < files.length; start += BATCH) {
    const some = files.slice(start, start + BATCH), images = new Uint8Array(some.length * size);
    for (const [i, file] of some.entries()) images.set(await decode(await contents(file), file), i * size);
    const { probabilities } = await run(images, some.length);
    for (const [i, image] of some.entries()) {
      const best = bundles.likeliest(probabilities[i], bundle.labels, top);
      const line = best.map(({ label, probability }) => `${label} ${(100 * probability).toFixed(1)}%`).join("  ");
      console.log(json ? JSON.stringify({ image, top: best }) : `${image}: ${line}`);
    }
  }
}

/** The bundle's cases again, from the files to the logits. */
async function selftest(run, decode, bundle, read, { model, json }) {
  const { cases, tolerance } = await bundles.selftest(read, bundle, model);
  let worst = 0;
  for (const { image, logits: expected } of cases) {
    const { logits, probabilities } = await run(await decode(await read(image), image), 1);
    worst = Math.max(worst, bundles.distance(logits[0], probabilities[0], expected));
  }
  const good = worst <= tolerance && cases.length > 0;
  const found = `max |d| ${bundles.scientific(worst)} (allowed ${bundles.scientific(tolerance)})`;
  (json ? console.error : console.log)(`self-test ${good ? "passed" : "FAILED"}: ${cases.length} images, ${found}`);
  return good;
}

function options() {
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
  // Node 18 has no global crypto: nothing would be hashed.
  if (Number.parseInt(process.versions.node) < 20) throw new Error(`expected Node 20, found ${process.version}`);
  const asked = options();
  if (asked.help) {
    console.log(USAGE);
    return 0;
  }
  const read = await reader(asked.folder), bundle = await bundles.open(read);
  const run = await session(bundle, asked.model), decode = await decoder(bundle);
  if (asked.selftest && !(await selftest(run, decode, bundle, read, asked))) return 1;
  await classify(run, decode, bundle, asked.images, asked);
  return 0;
}

process.stdout.on("error", (error) => { // whoever reads has gone
  console.error(`error: ${words(error)}`);
  process.exit(2);
});
try {
  process.exitCode = await main();
} catch (error) { // a client of the bundle wants one line: what was wrong with which file
  console.error(`error: ${words(error)}`);
  process.exitCode = 2;
}
