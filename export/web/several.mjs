/** Several images at once: a table of their answers, and the same as CSV. */

import { $, element, percent } from "./dom.mjs";

const COLUMNS = ["image", "answer", "probability", "second", "second_probability", "not_sure", "model", "error"];
const BYTE_ORDER_MARK = "\ufeff";

/**
 * Rows as CSV by RFC 4180: CRLF, and quotes around a field that needs them. A text that a spreadsheet would take for a
 * formula gets an apostrophe before it. A row is as `answered` makes it.
 */
export function csv(rows) {
  const lines = rows.map(({ name, best, second, unsure, model, error }) => {
    const flag = !best || unsure === null ? "" : unsure ? "yes" : "no";
    const texts = [name, best?.label, best?.probability, second?.label, second?.probability, flag, model, error];
    return texts.map(field);
  });
  return [COLUMNS, ...lines].map((line) => `${line.join(",")}\r\n`).join("");
}

function field(value) {
  if (typeof value === "number") return value.toFixed(6);
  const text = value ?? "";
  const safe = /^[\s\0]*[=+\-@＝＋－＠]|^[\t\r\n]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** A row: the likeliest classes of an image, and whether its answer is below the threshold; null: there is none. */
export function answered(name, [best, second], threshold, model) {
  return { name, best, second, unsure: threshold === null ? null : best.probability < threshold, model };
}

/** Empty the table for `count` images. Without a threshold it has no column that says which answers are not sure. */
export function begin(count, threshold) {
  $("rows").replaceChildren();
  $("flag").hidden = threshold === null;
  $("several").hidden = false;
  say([], count);
}

/** Add a row to the table; `open` shows its image alone. */
export function add(row, open) {
  const line = element("tr", row.error ? "refused" : row.unsure ? "unsure" : "");
  const name = element("th"), button = Object.assign(element("button", "link", row.name), { type: "button" });
  button.onclick = open;
  name.scope = "row";
  name.append(button);
  if (row.error) {
    line.append(name, Object.assign(element("td", "", row.error), { colSpan: $("flag").hidden ? 3 : 4 }));
  } else {
    line.dataset.probability = row.best.probability;
    const second = element("td");
    if (row.second) second.append(element("bdi", "", row.second.label), ` · ${percent(row.second.probability)}`);
    const [label, share, flag] = [row.best.label, percent(row.best.probability), row.unsure ? "not sure" : ""]
      .map((text) => element("td", "", text));
    flag.hidden = row.unsure === null;
    line.append(name, label, share, flag, second);
  }
  $("rows").append(line);
}

/** How far it is, in a sentence. */
export function say(rows, count) {
  const unsure = rows.filter((row) => row.unsure).length, refused = rows.filter((row) => row.error).length;
  const parts = [rows.length < count ? `${rows.length} of ${count} images` : `${count} images`];
  if (rows.length) parts.push(rows[0].model);
  if (unsure) parts.push(`${unsure} not sure`);
  if (refused) parts.push(`${refused} not readable`);
  $("progress").textContent = parts.join(" · ");
}

/** Hand the table to the browser as a file. Without the mark at its beginning Excel does not read it as UTF-8. */
export function save(rows) {
  const address = URL.createObjectURL(new Blob([BYTE_ORDER_MARK, csv(rows)], { type: "text/csv;charset=utf-8" }));
  Object.assign(document.createElement("a"), { href: address, download: "answers.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
