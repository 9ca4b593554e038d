// Loads the model and classifies images, beside the page, which stays responsive meanwhile.

import * as ort from "./ort.wasm.bundle.min.js";
import { decode } from "./decode.js";
import { evaluationCrop } from "./resize.js";

const TOP = 5;
const downloads = new AbortController();
const loaded = load();
loaded.catch((error) => {
  downloads.abort();
  postMessage({ kind: "failed", message: error.message });
});

async function load() {
  const facts = await (await get("model.json")).json();
  postMessage({ kind: "model", facts });
  const total = facts.files.reduce((sum, file) => sum + file.bytes, 0);
  let received = 0;
  const download = async ({ name, bytes }) => {
    const chunks = [];
    let length = 0;
    const response = await get(name);
    try {
      for (const reader = response.body.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (done) break;
        chunks.push(value);
        length += value.length;
        received += value.length;
        postMessage({ kind: "progress", received, total });
      }
    } catch (error) {
      throw new Error(`cannot load ${name} (${error.message}); load the page again`);
    }
    if (length !== bytes) {
      throw new Error(`${name} has ${length} bytes, expected ${bytes}; copy the whole folder again`);
    }
    return new Blob(chunks).arrayBuffer();
  };
  const [model, wasm] = await Promise.all(facts.files.map(download));
  postMessage({ kind: "starting" });
  ort.env.wasm.wasmBinary = wasm;
  try {
    const session = await ort.InferenceSession.create(new Uint8Array(model));
    postMessage({ kind: "ready" });
    return { facts, session };
  } catch (error) {
    throw new Error(`cannot start the model (${error.message}); try a newer browser`);
  }
}

async function get(name) {
  let response;
  try {
    // From the cache only what is still the same on the server: files of two exports do not mix.
    response = await fetch(name, { signal: downloads.signal, cache: "no-cache" });
  } catch (error) {
    throw new Error(`cannot load ${name} (${error.message}); is the server still there?`);
  }
  if (!response.ok) {
    throw new Error(
      `cannot load ${name} (${response.status} ${response.statusText}); copy the whole folder`);
  }
  return response;
}

let last = Promise.resolve();
onmessage = ({ data }) => {
  last = last.then(() => classify(data)); // one after the other
};

async function classify({ id, file }) {
  const model = await loaded.catch(() => null);
  if (!model) return; // reported already
  try {
    const { facts, session } = model;
    const [height, width] = facts.image_size;
    const image = await decode(file);
    const rgb = evaluationCrop(image.pixels, image.width, image.height, facts.image_size);
    const images = new ort.Tensor("uint8", rgb, [1, height, width, 3]);
    const { logits } = await session.run({ images });
    postMessage({ kind: "result", id, rgb, classes: best(logits.data, facts.class_names) });
  } catch (error) {
    postMessage({ kind: "error", id, message: error.message });
  }
}

/** The most probable classes, best first. */
function best(logits, names) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers
    .map((power, i) => ({ name: names ? names[i] : String(i), probability: power / sum }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, TOP);
}
