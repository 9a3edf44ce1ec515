/**
 * answers.json of a bundle: its confusion matrix, and the confidence below which an answer is "not sure". For Node and
 * for browsers. A file of another form is an Error with the reason.
 */

import { object } from "./bundle.mjs";

const NAME = "answers.json";
const WHOLE = 100; // classes up to which the whole matrix is shown
const MOST = 40; // classes of a part of it
const Z = 1.959963984540054; // of a two-sided interval of 95 %

/**
 * The file of an open bundle -> { split, images, classes: [{ images, right }], cells, notSure, reason }; null where the
 * manifest names none. `cells` is a Map from class × K + answer to images; `notSure` is null where there is a `reason`.
 */
export async function read({ manifest, labels, file }) {
  if (!Object.hasOwn(manifest.files, NAME)) return null;
  const { schema, split, images, confusions, not_sure: notSure, no_threshold: reason } = object(await file(NAME), NAME);
  const classes = labels.map(() => ({ images: 0, right: 0 })), cells = new Map();
  const isCell = (cell) => Array.isArray(cell) && cell.length === 3 && cell.every(isCount) && cell[2] > 0 &&
    cell[0] < labels.length && cell[1] < labels.length;
  const whole = schema === 1 && typeof split === "string" && Array.isArray(confusions) && confusions.every(isCell);
  if (!whole || !(notSure === null ? typeof reason === "string" : isThreshold(notSure))) {
    throw new Error(`${NAME} is damaged: expected split, confusions, and not_sure or the reason why there is none`);
  }
  for (const [label, answer, count] of confusions) {
    cells.set(label * labels.length + answer, count);
    classes[label].images += count;
    if (label === answer) classes[label].right += count;
  }
  const total = classes.reduce((sum, { images }) => sum + images, 0);
  if (cells.size !== confusions.length || total !== images || images !== manifest.accuracy?.images) {
    throw new Error(`${NAME} is damaged: its cells hold ${total} images, the manifest ${manifest.accuracy?.images}`);
  }
  return { split, images, classes, cells, notSure, reason };
}

/** The places of the classes that a matrix shows, in order: all, or those of the largest wrong cells. */
export function shownClasses({ classes, cells }) {
  const places = [...classes.keys()];
  if (places.length <= WHOLE) return places;
  const chosen = new Set(mistakes(cells, places.length).flatMap(({ label, answer }) => [label, answer]));
  return [...chosen].slice(0, MOST).sort((a, b) => a - b);
}

/** The wrong cells, the largest first: [{ label, answer, count }], places of classes. */
export function mistakes(cells, count) {
  const all = [...cells].map(([key, images]) => [Math.floor(key / count), key % count, images]);
  const wrong = all.filter(([label, answer]) => label !== answer).sort((a, b) => b[2] - a[2]);
  return wrong.map(([label, answer, images]) => ({ label, answer, count: images }));
}

/** Wilson's 95 % interval of a share of `images` -> [low, high], as okdc/runs/accuracy.py has it. */
export function wilson(share, images) {
  const centre = (share + Z ** 2 / (2 * images)) / (1 + Z ** 2 / images);
  const reach = (Z / (1 + Z ** 2 / images)) * Math.sqrt((share * (1 - share)) / images + (Z / (2 * images)) ** 2);
  return [Math.min(share, Math.max(0, centre - reach)), Math.max(share, Math.min(1, centre + reach))];
}

function isThreshold({ threshold, validation, judging } = {}) {
  const isSet = (set) => [set?.images, set?.wrong, set?.answered, set?.answered_wrong].every(isCount) && set.images > 0;
  return typeof threshold === "number" && threshold > 0 && threshold <= 1 && isSet(validation) && isSet(judging);
}

function isCount(x) {
  return Number.isSafeInteger(x) && x >= 0;
}
