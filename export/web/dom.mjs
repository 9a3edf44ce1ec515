/** What the page's parts share: elements, and numbers as a reader wants them. Every text becomes a text node; a
 * name inside a sentence stands in a <bdi>, so that one written from right to left leaves the words beside it in place. */

export const $ = (id) => document.getElementById(id);

export function element(kind, className = "", text = "") {
  return Object.assign(document.createElement(kind), { className, textContent: text });
}

/** A share from 0 to 1 in percent. */
export function percent(share, digits = 1) {
  return `${(100 * share).toFixed(digits)} %`;
}

export function inBytes(count) {
  return count >= 1e6 ? `${(count / 1e6).toFixed(1)} MB` : `${Math.ceil(count / 1e3)} kB`;
}

/** Wait until the browser has drawn: what follows then blocks this thread. A page in the background is not drawn. */
export function painted() {
  return new Promise((done) => {
    setTimeout(done, 50);
    requestAnimationFrame(() => setTimeout(done));
  });
}
