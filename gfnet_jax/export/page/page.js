// What is on the page: takes an image, hands it to the worker, and shows what comes back.

const TINY = 32; // pixels; images of up to this side are shown with every pixel a square
const element = (id) => document.getElementById(id);
const drop = element("drop");
const worker = new Worker("worker.js", { type: "module" });
let size; // of what the model sees: height, width
let ready = false;
let broken = false; // for good: there is no model
let asked = 0; // number of the newest image; answers to earlier ones are dropped
let name = "";

const answers = {
  model({ facts }) {
    size = facts.image_size;
    document.title = element("title").textContent = facts.title;
  },
  progress({ received, total }) {
    element("progress").value = received / total;
    const [some, all] = [received, total].map((bytes) => (bytes / 1e6).toFixed(1));
    say(`Loading the model: ${some} of ${all} MB`);
  },
  starting() {
    element("progress").removeAttribute("value"); // from now on nobody knows how long
    say("Starting the model ...");
  },
  ready() {
    ready = true;
    say(asked ? "Classifying ..." : "");
  },
  failed({ message }) {
    giveUp(message);
  },
  error({ id, message }) {
    if (id !== asked) return;
    say("");
    complain(`${name}: ${message}`);
  },
  result({ id, rgb, classes }) {
    if (id !== asked) return;
    say("");
    draw(rgb);
    element("name").textContent = name;
    element("classes").replaceChildren(...classes.map(row));
    element("result").hidden = false;
    element("result").classList.remove("stale");
  },
};

worker.onmessage = ({ data }) => answers[data.kind](data);
worker.onerror = () => {
  giveUp("cannot start: a file is missing, or this browser is too old; copy the whole folder");
};

element("progress").removeAttribute("value");
say("Loading the model ...");

/** Says what is going on; with nothing to say, nothing is. */
function say(text) {
  element("status").textContent = text;
  element("loading").hidden = !text;
}

function complain(text) {
  element("error").textContent = text;
  element("error").hidden = !text;
}

function giveUp(text) {
  broken = true;
  complain(text);
  say("");
}

function draw(rgb) {
  const [height, width] = size;
  const image = new ImageData(width, height);
  image.data.fill(255);
  for (let i = 0, j = 0; i < image.data.length; i += 4) {
    for (let channel = 0; channel < 3; channel++) image.data[i + channel] = rgb[j++];
  }
  const canvas = element("seen");
  [canvas.height, canvas.width] = size;
  canvas.classList.toggle("tiny", Math.max(width, height) <= TINY);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function row({ name, probability }) {
  const item = document.createElement("li");
  const [bar, label, value] = ["span", "span", "data"].map((tag) => document.createElement(tag));
  bar.className = "bar";
  bar.style.width = `${100 * probability}%`;
  label.className = "class";
  label.textContent = name;
  value.value = probability;
  value.textContent = `${(100 * probability).toFixed(2)} %`;
  item.append(bar, label, value);
  return item;
}

/** Classifies the first of some files. */
function take(files) {
  if (broken) return; // what is wrong is still to be read
  const file = files?.[0];
  if (!file) {
    complain("that was no file; choose, drop or paste an image");
    return;
  }
  name = file.name || "the image";
  complain("");
  element("result").classList.add("stale");
  if (ready) say("Classifying ...");
  worker.postMessage({ id: ++asked, file });
}

element("file").addEventListener("change", ({ target }) => {
  if (target.files.length) take(target.files);
  target.value = ""; // so that the same file can be chosen again
});
addEventListener("paste", ({ clipboardData }) => take(clipboardData.files));
addEventListener("dragover", (event) => {
  event.preventDefault(); // or the browser would open the file
  drop.classList.add("over");
});
addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) drop.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files);
});
