/** The facts that a bundle has of itself: the title, the card, the confusion matrix, and when the page is not sure. */

import { mistakes, shownClasses, wilson } from "./answers.mjs";
import { $, element, inBytes, percent } from "./dom.mjs";

const PAIRS = 5; // of classes that are confused most
const LONGEST = 200; // letters of a fact that a stranger wrote
const REASONS = {
  "no validation images": "no validation images could choose a threshold",
  "too few wrong answers": "too few answers to the validation images are wrong to choose a threshold by",
  "confidence does not tell": "no confidence halves the error on the validation images",
};

/** The title, the sentence below it, the choice of models, and the card. */
export function describe({ manifest, labels, models }) {
  const { accuracy, files } = manifest;
  const size = (precision) => Number(files[manifest.models[precision]?.file]?.bytes ?? NaN);
  const top1 = (precision) => Number(manifest.models[precision]?.top1_pct);
  const summary = [`${labels.length} classes`];
  if (top1("float32") >= 0) {
    const count = Number(accuracy?.images).toLocaleString("en");
    summary.push(`top-1 ${top1("float32").toFixed(2)} % on ${count} ${accuracy?.split} images`);
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
  $("card").replaceChildren(...facts(manifest, labels, models).map(([term, text]) => fact(term, text)));
}

function facts(manifest, labels, models) {
  const { accuracy, input, files } = manifest;
  const rows = [
    ["Architecture", word(manifest.architecture)],
    ["Parameters", count(manifest.params)],
    ["Multiply-adds of an image", count(manifest.macs)],
    ["Input", `${input.width} × ${input.height} pixels, RGB`],
    ["Classes", count(labels.length)],
    ["Accuracy, with 95 % interval", withInterval(manifest.models.float32?.top1_pct, accuracy?.images)],
    ["Judged on", `${count(accuracy?.images)} ${word(accuracy?.split)} images`],
    ["Data set", word(manifest.dataset)],
    ["Method", `${word(manifest.method)}, student ${count(manifest.student)} of ${count(manifest.students?.length)}`],
  ];
  for (const precision of models) {
    const { file, top1_pct: top1 } = manifest.models[precision] ?? {};
    const { bytes, sha256 } = (Object.hasOwn(files, file) && files[file]) || {};
    const size = Number.isFinite(bytes) ? inBytes(bytes) : "unknown size";
    const share = Number.isFinite(top1) ? `${top1.toFixed(2)} %` : "unknown accuracy";
    rows.push([word(file), `${share} · ${size} · sha256\u00a0${word(sha256).slice(0, 12)}`]);
  }
  return rows;
}

function fact(term, text) {
  const row = element("div");
  row.append(element("dt", "", term), element("dd", "", text));
  return row;
}

function word(x) {
  return typeof x === "string" ? x.slice(0, LONGEST) : "unknown";
}

function count(x) {
  return Number.isSafeInteger(x) && x >= 0 ? x.toLocaleString("en") : "unknown";
}

function withInterval(pct, images) {
  if (!(pct >= 0 && pct <= 100 && images > 0)) return "unknown";
  const [low, high] = wilson(pct / 100, images);
  return `${pct.toFixed(2)} % [${(100 * low).toFixed(2)}, ${(100 * high).toFixed(2)}]`;
}

// --------------------------------------------------------------------------------------------------------------------
// When the page is not sure

/** `answers` as answers.mjs has them. */
export function describeThreshold({ notSure, split, reason }) {
  if (!notSure) {
    const why = Object.hasOwn(REASONS, reason) ? REASONS[reason] : "the bundle has no threshold";
    $("threshold").textContent = `The page never says “not sure”: ${why}.`;
    return;
  }
  $("threshold").textContent = `An answer below ${percent(notSure.threshold)} is “not sure”. Validation images chose ` +
    "this threshold: it is the lowest at which the answers above it are wrong at most half as often as all of them. " +
    "It was chosen for the float32 model.";
  const sets = [["validation, which chose it", notSure.validation]];
  if (split !== "validation") sets.push([split, notSure.judging]);
  const head = heads(["Images", "Answered", "Wrong, of all", "Wrong, of the answered"]);
  const lines = sets.map(([name, set]) => {
    const { images, wrong, answered, answered_wrong: missed } = set;
    const [low, high] = answered ? wilson(missed / answered, answered) : [0, 1];
    const interval = `[${(100 * low).toFixed(1)}, ${(100 * high).toFixed(1)}]`;
    const left = answered ? `${percent(missed / answered)} ${interval}` : "–";
    const line = row([percent(answered / images), percent(wrong / images), left]);
    line.prepend(header(`${images.toLocaleString("en")} ${word(name)}`, "row"));
    return line;
  });
  $("kept").replaceChildren(head, ...lines);
  $("kept").parentElement.hidden = false;
}

// --------------------------------------------------------------------------------------------------------------------
// The confusion matrix

/** The matrix, classes as rows and answers as columns, and in words the pairs that are confused most. */
export function describeConfusions(answers, labels) {
  const { classes, cells, images, split } = answers;
  const shown = shownClasses(answers), part = shown.length < labels.length;
  const pairs = mistakes(cells, labels.length).slice(0, PAIRS).map(({ label, answer, count }) => {
    const line = element("li"), [from, to] = [label, answer].map((place) => element("bdi", "", labels[place]));
    line.append("“", from, "” is taken for “", to, `”: ${count} of ${classes[label].images} images`);
    return line;
  });
  $("confused").replaceChildren(...pairs);
  const counted = `A row is a class, a column an answer of the float32 model to ${images.toLocaleString("en")} ` +
    `${word(split)} images; a cell without a number has none.`;
  const limited = ` Shown are the ${shown.length} of ${labels.length} classes that are confused most.`;
  $("counted").textContent = counted + (part ? limited : "");
  const head = heads(["Class", "Right", ...shown.map((answer) => labels[answer])]);
  for (const cell of [...head.children].slice(2)) cell.replaceChildren(element("span", "", cell.textContent));
  const lines = shown.map((label) => {
    const { images, right } = classes[label];
    const line = row([images ? percent(right / images, 0) : "–"]);
    line.prepend(header(labels[label], "row"));
    line.append(...shown.map((answer) => cell(cells.get(label * labels.length + answer), images, label === answer)));
    return line;
  });
  const body = element("tbody");
  body.append(...lines);
  const top = element("thead");
  top.append(head);
  $("matrix").replaceChildren(top, body);
  $("matrix").classList.toggle("dense", shown.length > 20);
  $("matrix").classList.toggle("short", labels.every((label) => label.length < 3));
}

function cell(count, images, right) {
  if (!count) return element("td");
  const box = element("td", right ? "right" : "wrong", String(count));
  box.style.setProperty("--share", count / images);
  return box;
}

function row(texts) {
  const line = element("tr");
  line.append(...texts.map((text) => element("td", "", text)));
  return line;
}

function heads(texts) {
  const line = element("tr");
  line.append(...texts.map((text) => header(text, "col")));
  return line;
}

function header(text, scope) {
  return Object.assign(element("th", "", text), { scope, title: text });
}
