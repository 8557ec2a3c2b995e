// The page: pictures in, results out. Nothing is sent anywhere; a test sees that no other origin is asked.
import { findRegions, scoreOf, verdictOf } from "./decide.js";
import { draw } from "./draw.js";
import { openModel } from "./model.js";
import { canvasIsExact, drawnPixels, readGrey, toGrey } from "./pixels.js";

const MOST = 500, MOST_PIXELS = 100_000_000; // kept at once, of all pictures: a pixel takes 6 bytes, and a phone ends a page of gigabytes
const $ = (id) => document.getElementById(id);
const say = (text) => { $("status").textContent = text; };
const sayUnloaded = (error) => say(`The model cannot be loaded: ${error.message}. Reload the page when the network is there.`);
const about = await fetch("model.json").then((found) => found.json()) // written by build.py from the model's card
  .catch((error) => { sayUnloaded(error); throw error; });
const decision = { ...about.decision };
const colourOf = (label) => about.colours[about.labels.indexOf(label)];
const pictures = []; // { name, grey, probability, classes, score } or { name, error }
let shown = 0, leftOut = 0, queue = Promise.resolve(), infer;

/** Say a picture's own line, and how many came out without a verdict: the next line must not hide that. */
function sayOf(text) {
  const unread = pictures.filter((each) => each.error).length;
  const lacks = [unread && `${unread} of ${pictures.length} not read`, leftOut && `${leftOut} left out: at most ${MOST} pictures and ${MOST_PIXELS / 1e6} million pixels; reload the page to start anew`];
  say([text, ...lacks.filter(Boolean).map((each) => `${each}.`)].join(" "));
}

function load(processor) {
  say("Loading the model: once, then the page works without a network …");
  infer = openModel(about, processor);
  infer.then(() => say(canvasIsExact() ? "Ready." : "This browser changes pictures' pixels, against tracking: its answers may differ."),
    sayUnloaded);
}

async function add(name, read) {
  const pixels = pictures.reduce((sum, { grey }) => sum + (grey?.length ?? 0), 0);
  if (pictures.length >= MOST || pixels >= MOST_PIXELS) {
    leftOut += 1;
    return sayOf(`${name} was left out.`);
  }
  try {
    const picture = await read(), model = await infer, start = performance.now();
    const answer = { name, ...await model(picture) };
    pictures.push({ ...answer, score: scoreOf(answer, decision) });
    sayOf(`${name}: ${Math.round(performance.now() - start)} ms.`);
  } catch (error) {
    pictures.push({ name, error: error.message });
    sayOf(`${name}: ${error.message}.`);
  }
  shown = pictures.length - 1;
  show();
}

const addFiles = (files) => { for (const file of files) queue = queue.then(() => add(file.webkitRelativePath || file.name, () => readGrey(file))); };

function decided(picture) {
  return picture.error ? { rows: [], verdict: "not read" }
    : { ...findRegions(picture, decision, about.labels), verdict: verdictOf(picture.score, decision) };
}

function show() {
  for (const [id, key] of [["threshold", "threshold"], ["reject", "reject_score"]]) $(`${id}-value`).value = decision[key].toFixed(3);
  const picture = pictures[shown];
  if (!picture) return;
  const result = decided(picture), score = picture.error ?? `score ${picture.score.toFixed(3)}, reject from ${decision.reject_score.toFixed(3)}`;
  $("result").hidden = false;
  $("verdict").textContent = result.verdict;
  $("verdict").className = result.verdict.replace(" ", "-");
  $("score").textContent = `${picture.name}: ${score}`;
  $("overlay").hidden = Boolean(picture.error);
  if (!picture.error) draw($("overlay"), { ...picture, ...result }, colourOf);
  $("overlay").setAttribute("aria-label", `${picture.name}, ${result.rows.length} regions outlined`);
  const found = new Set(result.rows.map((row) => row.label));
  $("legend").replaceChildren(...about.labels.slice(1).filter((label) => found.has(label)).map((label) => chip("li", label)));
  $("regions").replaceChildren(...result.rows.map((row, index) => line([index + 1, ...about.columns.map((name) => row[name])])));
  $("none").hidden = result.rows.length > 0;
  $("pictures").replaceChildren(...pictures.map((each, index) => new Option(`${each.name}: ${each.error ? "not read" : verdictOf(each.score, decision)}`, index, false, index === shown)));
}

function chip(tag, label) {
  const made = Object.assign(document.createElement(tag), { textContent: label, className: "chip" });
  made.style.setProperty("--colour", colourOf(label) ?? "transparent");
  return made;
}

function line(values) {
  const row = document.createElement("tr");
  values.forEach((value, index) => row.append(index === 1 ? chip("td", value)
    : Object.assign(document.createElement("td"), { textContent: Number.isInteger(value) || value === "" ? value : value.toFixed(3) })));
  return row;
}

/** A line per region; a picture without one, or one that was not read, has one line. */
function csv() {
  const asText = (words) => (/^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(words) ? `'${words}` : words); // to a spreadsheet, not a formula
  const quoted = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
  const lines = [["picture", "verdict", "picture_score", "number", ...about.columns, "error"]];
  for (const picture of pictures) {
    const { rows, verdict } = decided(picture), start = [asText(picture.name), verdict, picture.score ?? ""];
    const blank = about.columns.map(() => "");
    if (!rows.length) lines.push([...start, "", ...blank, picture.error ?? ""]);
    rows.forEach((row, index) => lines.push([...start, index + 1, ...about.columns.map((name) => row[name]), ""]));
  }
  return lines.map((cells) => `${cells.map(quoted).join(",")}\n`).join("");
}

async function entryFiles(entry) { // of what was dropped: a file, or all files of a folder, in the order of their names
  if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
  const reader = entry.createReader(), entries = [];
  for (let more; (more = await new Promise((done, failed) => reader.readEntries(done, failed))).length;) entries.push(...more);
  entries.sort((a, b) => (a.name < b.name ? -1 : 1));
  return (await Promise.all(entries.map(entryFiles))).flat();
}

async function openCamera() {
  try {
    const video = { facingMode: "environment", width: { ideal: 640 }, height: { ideal: 480 } };
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video });
    $("camera-dialog").showModal();
  } catch { $("photo").click(); } // no permission, no camera or no secure address: the system's own camera, where there is one
}

function take() {
  const { videoWidth: width, videoHeight: height } = $("video"), rgba = drawnPixels($("video"), width, height);
  $("camera-dialog").close();
  queue = queue.then(() => add(`camera ${new Date().toLocaleTimeString()}`, () => ({ grey: toGrey(rgba), width, height })));
}

for (const [id, key] of [["threshold", "threshold"], ["reject", "reject_score"]]) {
  $(id).value = decision[key];
  $(id).addEventListener("input", () => { decision[key] = Number($(id).value); show(); });
}
for (const id of ["files", "folder", "photo"]) $(id).addEventListener("change", ({ target }) => { addFiles([...target.files]); target.value = ""; });
for (const id of ["files", "folder"]) $(`choose-${id}`).addEventListener("click", () => $(id).click());
$("example").addEventListener("click", async () => addFiles([new File([await (await fetch("example.png")).blob()], "example.png")]));
$("camera").addEventListener("click", openCamera);
$("take").addEventListener("click", take);
$("camera-dialog").addEventListener("close", () => $("video").srcObject.getTracks().forEach((track) => track.stop()));
$("pictures").addEventListener("change", ({ target }) => { shown = Number(target.value); show(); });
$("csv").addEventListener("click", () => {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })), download: "defects.csv" });
  link.click();
  URL.revokeObjectURL(link.href);
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean); // before any await
  addFiles((await Promise.all(entries.map(entryFiles))).flat());
});
$("processor").addEventListener("change", ({ target }) => load(target.value));
navigator.gpu?.requestAdapter().then((adapter) => { $("processor-field").hidden = !adapter; });
$("columns").append(...["", ...about.columns].map((name) => Object.assign(document.createElement("th"), { textContent: name || "#", scope: "col" })));
$("model").textContent = `${about.name}, SHA-256 ${about.sha256.slice(0, 12)}`;
load("wasm");
show();
document.documentElement.dataset.ready = "";
navigator.serviceWorker?.register("sw.js");
