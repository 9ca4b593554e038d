// Image files to pixels as Pillow's convert("RGB") gives them: colours as they are in the file, not
// turned by EXIF, and transparency dropped.

import { withoutExif } from "./exif.js";

const AS_IN_THE_FILE = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
const MAX_PIXELS = 120_000_000;

/**
 * Decodes an image.
 * @param {Blob} file
 * @returns {Promise<{pixels: Uint8ClampedArray, width: number, height: number}>} RGBA; the alpha
 *   of a transparent image is to be ignored.
 */
export async function decode(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(await withoutExif(file), AS_IN_THE_FILE);
  } catch {
    throw new Error(
      file.size
        ? "no image, damaged, or of a kind that this browser cannot read; try a JPEG or a PNG"
        : "an empty file");
  }
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) {
    throw new Error(`${width}x${height} pixels, too many to read; make it smaller`);
  }
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  let pixels = context.getImageData(0, 0, width, height).data;
  // A canvas holds colours multiplied by alpha, which does not bring them back.
  if (isTransparent(pixels)) pixels = readTransparent(bitmap);
  bitmap.close();
  return { pixels, width, height };
}

function isTransparent(pixels) {
  for (let i = 3; i < pixels.length; i += 4) if (pixels[i] < 255) return true;
  return false;
}

/** By WebGL, which leaves colours alone. */
function readTransparent(bitmap) {
  const { width, height } = bitmap;
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  const largest = gl ? gl.getParameter(gl.MAX_TEXTURE_SIZE) : 0;
  if (Math.max(width, height) > largest) {
    throw new Error("a transparent image that this browser cannot read; save it without transparency");
  }
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  const texture = gl.getParameter(gl.TEXTURE_BINDING_2D);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const pixels = new Uint8Array(width * height * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  return pixels;
}
