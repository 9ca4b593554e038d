// Browsers turn images as EXIF notes, and createImageBitmap cannot be told not to; predict does not.

const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

/** A JPEG or a PNG without its EXIF data; any other file as it is. */
export async function withoutExif(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const spans = bytes[0] === 0xff && bytes[1] === 0xd8
    ? spansOfJpeg(bytes)
    : PNG.every((byte, i) => bytes[i] === byte) ? spansOfPng(bytes) : [];
  const parts = [];
  let kept = 0; // up to here
  for (const [start, end] of spans) {
    parts.push(bytes.subarray(kept, start));
    kept = end;
  }
  return spans.length ? new Blob([...parts, bytes.subarray(kept)], { type: file.type }) : file;
}

/** Where the segments of EXIF begin and end. */
function spansOfJpeg(bytes) {
  const view = new DataView(bytes.buffer);
  const spans = [];
  for (let i = 2; i + 10 <= bytes.length && bytes[i] === 0xff; ) {
    if (bytes[i + 1] === 0xff) { // fills a gap
      i++;
      continue;
    }
    if (bytes[i + 1] === 0xda) break; // pixels follow
    const end = i + 2 + view.getUint16(i + 2);
    if (bytes[i + 1] === 0xe1 && text(bytes, i + 4) === "Exif") spans.push([i, end]);
    i = end;
  }
  return spans;
}

function spansOfPng(bytes) {
  const view = new DataView(bytes.buffer);
  const spans = [];
  for (let i = PNG.length; i + 12 <= bytes.length; ) {
    const end = i + 12 + view.getUint32(i); // length, type, data, checksum
    if (text(bytes, i + 4) === "eXIf") spans.push([i, end]);
    i = end;
  }
  return spans;
}

function text(bytes, start) {
  return String.fromCharCode(...bytes.subarray(start, start + 4));
}
