/**
 * The manifest's rule for an image that a decoder turned upright: RGB over black, the shorter side resized, the centre
 * cut out. The resize equals Pillow's antialiased bilinear to the byte.
 *
 * An image is { data, width, height, channels }: Uint8Array, rows from the top, channels interleaved.
 */

export const PIXELS = Math.floor(2 ** 30 / 12); // more pixels are an attack or a mistake (Pillow's limit)
const BITS = 22; // Pillow's weights are integers: 32 bits less 8 of the pixel and 2 of headroom

/**
 * A decoded image of 8 or 16 bits and 1 to 4 channels -> 8-bit RGB. 16-bit grey is divided by 257; other 16-bit images
 * keep the upper byte, as in Pillow. With `cmyk`, four channels are CMYK and not RGBA.
 */
export function toRgb({ data, width, height, channels, cmyk = false }) {
  const deep = data instanceof Uint16Array;
  const scale = deep && channels === 1 ? (v) => Math.round(v / 257) : deep ? (v) => v >> 8 : (v) => v;
  const colours = channels < 3 ? 1 : 3;
  const alpha = cmyk || channels === colours ? -1 : channels - 1;
  const rgb = new Uint8Array(width * height * 3);
  for (let i = 0, o = 0; o < rgb.length; i += channels, o += 3) {
    const opacity = alpha < 0 ? 255 : scale(data[i + alpha]);
    for (let c = 0; c < 3; c++) {
      const value = scale(data[i + (colours === 1 ? 0 : c)]);
      rgb[o + c] = cmyk ? ink(value, data[i + 3]) : opacity === 255 ? value : overBlack(value, opacity);
    }
  }
  return { data: rgb, width, height, channels: 3 };
}

/** Pillow's alpha_composite over opaque black: 7 bits more than 8, each division rounded. */
function overBlack(value, alpha) {
  const t = value * alpha * 128 + 128 * 128;
  return (((t >> 8) + t) >> 8) >> 7;
}

/** Pillow's CMYK: each ink absorbs its share of the light that black leaves. */
function ink(value, black) {
  const t = value * (255 - black) + 128;
  return 255 - black - (((t >> 8) + t) >> 8);
}

/** RGB or opaque RGBA of any size -> side×side×3 bytes. An image of side×side pixels is not resized. */
export function fit(image, side, shorter = side) {
  let { width, height } = image;
  if (width !== side || height !== side) {
    const scale = shorter / Math.min(width, height);
    width = Math.max(shorter, roundHalfEven(width * scale));
    height = Math.max(shorter, roundHalfEven(height * scale));
    if (width * height > PIXELS) {
      throw new Error(`${image.width}×${image.height} pixels would become ${width}×${height}`);
    }
  }
  const left = (width - side) >> 1, top = (height - side) >> 1;
  return resized(image, weights(image.width, width, left, side), weights(image.height, height, top, side));
}

/** Python's round(). */
export function roundHalfEven(x) {
  const low = Math.floor(x);
  return x - low > 0.5 || (x - low === 0.5 && low % 2 === 1) ? low + 1 : low;
}

/**
 * A line of `from` pixels is resized to `to`. For each new pixel first ... first+count-1: the old pixels that it
 * averages (from `start` on) and their integer weights. Bilinear is a triangle as wide as the step, but at least 1.
 */
function weights(from, to, first, count) {
  const step = from / to, support = Math.max(step, 1);
  return Array.from({ length: count }, (_, i) => {
    const centre = (first + i + 0.5) * step;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const shares = [];
    for (let x = start; x < end; x++) shares.push(Math.max(0, 1 - Math.abs((x - centre + 0.5) * (1 / support))));
    const sum = shares.reduce((a, b) => a + b, 0);
    return { start, taps: Int32Array.from(shares, (w) => Math.trunc(0.5 + (w / sum) * 2 ** BITS)) };
  });
}

/** Pillow's two passes for the pixels of the cut: rows first, rounded to bytes, then columns. */
function resized({ data, width, channels }, columns, rows) {
  const first = rows[0].start, last = rows[rows.length - 1];
  const count = last.start + last.taps.length - first, line = columns.length * 3;
  const half = 1 << (BITS - 1);
  const between = new Uint8Array(count * line);
  for (let y = 0; y < count; y++) {
    const from = (first + y) * width * channels;
    for (let x = 0, o = y * line; x < columns.length; x++, o += 3) {
      const { start, taps } = columns[x];
      let r = half, g = half, b = half;
      for (let k = 0, i = from + start * channels; k < taps.length; k++, i += channels) {
        r += data[i] * taps[k];
        g += data[i + 1] * taps[k];
        b += data[i + 2] * taps[k];
      }
      between[o] = byte(r);
      between[o + 1] = byte(g);
      between[o + 2] = byte(b);
    }
  }
  const out = new Uint8Array(rows.length * line);
  for (let y = 0; y < rows.length; y++) {
    const { start, taps } = rows[y];
    for (let x = 0; x < line; x++) {
      let sum = half;
      for (let k = 0, i = (start - first) * line + x; k < taps.length; k++, i += line) sum += between[i] * taps[k];
      out[y * line + x] = byte(sum);
    }
  }
  return out;
}

/** A rounded sum, at most 255: the weights are rounded, so that a sum may pass it. */
function byte(sum) {
  return Math.min(255, sum >> BITS);
}
