// The evaluation transform of gfnet-jax predict: bicubic resizing as in Pillow, bit for bit, and
// the centre crop. Only what the crop shows is computed.

const RESIZE_FREE_SIZE = 32; // up to this side, images are not resized
const BITS = 22; // of the fraction of a weight, which Pillow rounds to integers
const SUPPORT = 2; // pixels that the bicubic kernel reaches to each side

/**
 * The part of an image that the model sees.
 * @param {Uint8ClampedArray} pixels RGBA, row by row; A is ignored.
 * @param {number} width of the image.
 * @param {number} height of the image.
 * @param {[number, number]} size height and width of the result.
 * @returns {Uint8Array} RGB, row by row.
 */
export function evaluationCrop(pixels, width, height, size) {
  if (Math.max(...size) <= RESIZE_FREE_SIZE) {
    if (size[0] !== height || size[1] !== width) {
      throw new Error(
        `an image of ${height}x${width} (height x width), expected ${size[0]}x${size[1]}: ` +
          "this model takes images of just that size");
    }
    return withoutAlpha(pixels);
  }
  const [resizedWidth, resizedHeight] = coveringSize(width, height, size);
  const columns = taps(width, resizedWidth, roundHalfToEven((resizedWidth - size[1]) / 2), size[1]);
  const rows = taps(height, resizedHeight, roundHalfToEven((resizedHeight - size[0]) / 2), size[0]);
  return resizeHeight(resizeWidth(pixels, width, columns, rows), columns.length, rows);
}

function withoutAlpha(pixels) {
  const rgb = new Uint8Array((pixels.length / 4) * 3);
  for (let i = 0, j = 0; i < pixels.length; i += 4) {
    for (let channel = 0; channel < 3; channel++) rgb[j++] = pixels[i + channel];
  }
  return rgb;
}

/** Width and height to which the image is resized before the crop. */
function coveringSize(width, height, size) {
  const [toHeight, toWidth] = size.map((side) => Math.trunc((256 / 224) * side));
  if (height * toWidth <= width * toHeight) return [Math.trunc((toHeight * width) / height), toHeight];
  return [toWidth, Math.trunc((toWidth * height) / width)];
}

function roundHalfToEven(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/** Where results get their pixels from along one axis: for each the first, and the weights. */
function taps(before, after, start, count) {
  const scale = before / after;
  const stretch = Math.max(scale, 1); // of the kernel, so that it averages what is lost
  const support = SUPPORT * stretch;
  return Array.from({ length: count }, (_, i) => {
    const centre = (start + i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support + 0.5), before);
    const weights = new Float64Array(end - first);
    let sum = 0;
    for (let x = 0; x < weights.length; x++) {
      weights[x] = bicubic((x + first - centre + 0.5) * (1 / stretch));
      sum += weights[x];
    }
    return { first, weights: weights.map((weight) => roundToInteger((weight / sum) * 2 ** BITS)) };
  });
}

function bicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function roundToInteger(x) {
  return Math.trunc(x < 0 ? x - 0.5 : x + 0.5);
}

/** RGB of the rows that the crop needs, each as wide as the crop; earlier rows stay empty. */
function resizeWidth(pixels, width, columns, rows) {
  const last = rows.at(-1);
  const end = last.first + last.weights.length;
  const result = new Uint8Array(end * columns.length * 3);
  for (let y = rows[0].first; y < end; y++) {
    for (let x = 0; x < columns.length; x++) {
      const { first, weights } = columns[x];
      weigh(result, (y * columns.length + x) * 3, pixels, (y * width + first) * 4, 4, weights);
    }
  }
  return result;
}

function resizeHeight(pixels, width, rows) {
  const result = new Uint8Array(rows.length * width * 3);
  for (let y = 0; y < rows.length; y++) {
    const { first, weights } = rows[y];
    for (let x = 0; x < width; x++) {
      weigh(result, (y * width + x) * 3, pixels, (first * width + x) * 3, width * 3, weights);
    }
  }
  return result;
}

/** Writes one RGB pixel: the weighted sum of pixels that are a step apart. */
function weigh(result, to, pixels, from, step, weights) {
  for (let channel = 0; channel < 3; channel++) {
    let sum = 2 ** (BITS - 1);
    for (let i = 0, j = from + channel; i < weights.length; i++, j += step) {
      sum += pixels[j] * weights[i];
    }
    result[to + channel] = Math.min(Math.max(Math.floor(sum / 2 ** BITS), 0), 255);
  }
}
