// From a file to grey bytes, by the rules of magtiles_seg/image.py as far as a browser can keep them exactly.

export const MOST_PIXELS = 4_000_000; // of a larger picture the network's layers do not fit into a phone's memory

const MOST_BYTES = 64_000_000; // more than so many pixels take in any of the formats

const START = { png: "\x89PNG", jpeg: "\xff\xd8\xff", bmp: "BM", webp: "RIFF", tiff: "II*\0", motorola: "MM\0*", bigtiff: "II+\0" };

/** The picture in a File or Blob: { grey: Uint8Array, width, height }; throws an Error that says what is wrong. */
export async function readGrey(file) {
  const head = new Uint8Array(await file.slice(0, 26).arrayBuffer());
  const text = String.fromCharCode(...head);
  const kind = Object.keys(START).find((name) => text.startsWith(START[name]));
  if (kind === undefined) throw new Error("no picture in a format that is read; expected PNG, JPEG, BMP or WebP");
  if (["tiff", "motorola", "bigtiff"].includes(kind))
    throw new Error("a TIFF file, which browsers do not decode; save it as PNG, or use `magtiles-seg segment`");
  if (kind === "png" && head[24] === 16)
    throw new Error("a 16-bit PNG, of which browsers keep 8 bits; save it as 8-bit PNG, or use `magtiles-seg segment`");
  if (file.size > MOST_BYTES) throw new Error(`larger than ${MOST_BYTES / 1e6} MB; cut the picture into parts`);
  const { size, frames, turned } = structureOf(new Uint8Array(await file.arrayBuffer()), kind);
  checkSize(...size);
  if (frames > 1) throw new Error(`${frames} frames; expected a single picture; save each as a file of its own`);
  if (turned && kind === "webp") throw new Error(TURNED);
  let bitmap;
  try { // no colour management, no multiplication by alpha: the stored values count
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error("a damaged picture, or of a kind that this browser does not decode; save it as PNG again");
  }
  const { width, height } = bitmap;
  checkSize(width, height);
  let rgba = drawnPixels(bitmap);
  if (rgba.some((value, at) => at % 4 === 3 && value > 0 && value < 255)) {
    if (turned) throw new Error(TURNED);
    rgba = await unmultiplied(file, `image/${kind}`) ?? rgba;
  }
  return { grey: toGrey(rgba), width, height };
}

const TURNED = "turned by its EXIF data, which browsers do not heed in such a file; save it upright, as PNG";

function checkSize(width, height) {
  if (Math.max(width, 32) * Math.max(height, 32) > MOST_PIXELS)
    throw new Error(`${width} x ${height} px; expected at most ${MOST_PIXELS.toLocaleString("en")}; cut the picture into parts`);
}

/** What a file says before it is decoded: { size: [width, height], 0 where that is unknown; frames, turned }. */
function structureOf(bytes, kind) {
  const view = new DataView(bytes.buffer), about = { size: [0, 0], frames: 1, turned: false };
  if (kind === "bmp" && bytes.length >= 26) about.size = [18, 22].map((at) => Math.abs(view.getInt32(at, true)));
  if (kind === "jpeg") about.size = jpegSize(view);
  if (kind !== "png" && kind !== "webp") return about;
  const png = kind === "png"; // both are rows of chunks: length and name, or name and length
  let pieces = 0;
  for (let at = png ? 8 : 12, end; at + 8 <= bytes.length; at = end) {
    const length = view.getUint32(png ? at : at + 4, !png), body = at + 8;
    const name = String.fromCharCode(...bytes.subarray(png ? at + 4 : at, png ? at + 8 : at + 4));
    end = body + length + (png ? 4 : length % 2);
    if (body + length > bytes.length) break;
    if (name === "IHDR" && length >= 8) about.size = [view.getUint32(body), view.getUint32(body + 4)];
    if (name === "acTL" && length >= 4) about.frames = view.getUint32(body);
    if (name === "ANMF") about.frames = Math.max(1, ++pieces);
    if (name.toUpperCase() === "EXIF") about.turned = orientationOf(new DataView(bytes.buffer, body, length)) > 1;
  }
  return about;
}

function jpegSize(view) {
  for (let at = 2; at + 9 <= view.byteLength && view.getUint8(at) === 0xff;) {
    const marker = view.getUint8(at + 1);
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) return [view.getUint16(at + 7), view.getUint16(at + 5)];
    at += marker === 0xff ? 1 : 2 + view.getUint16(at + 2);
  }
  return [0, 0];
}

/** The orientation of EXIF data: 1 is upright, 2 to 8 are turned or mirrored; 1 where it says nothing. */
function orientationOf(view) {
  const start = view.byteLength >= 6 && view.getUint32(0) === 0x45786966 ? 6 : 0; // "Exif", and two zeros
  if (view.byteLength < start + 8) return 1;
  const little = view.getUint16(start) === 0x4949, first = start + view.getUint32(start + 4, little);
  if (first + 2 > view.byteLength) return 1;
  for (let at = first + 2, left = view.getUint16(first, little); left > 0 && at + 12 <= view.byteLength; at += 12, left--)
    if (view.getUint16(at, little) === 0x0112) return view.getUint16(at + 8, little);
  return 1;
}

/** The RGBA bytes of an image, bitmap or video frame. Exact where alpha is 0 or 255: a canvas multiplies by it. */
export function drawnPixels(source, width = source.width, height = source.height) {
  const canvas = new OffscreenCanvas(width, height), pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(source, 0, 0);
  return pen.getImageData(0, 0, width, height).data;
}

/** The RGBA bytes of a file with translucent pixels, as they are stored; null where the browser has no ImageDecoder. */
async function unmultiplied(file, type) {
  if (!("ImageDecoder" in globalThis)) return null;
  const decoder = new ImageDecoder({ data: await file.arrayBuffer(), type,
    colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { image } = await decoder.decode();
  const rgba = new Uint8Array(image.allocationSize()); // as it is decoded: a conversion would multiply by alpha
  await image.copyTo(rgba);
  const order = image.format;
  image.close();
  if (order === "BGRA") for (let at = 0; at < rgba.length; at += 4) [rgba[at], rgba[at + 2]] = [rgba[at + 2], rgba[at]];
  return ["RGBA", "BGRA"].includes(order) ? rgba : null;
}

/** Grey = 0.299 R + 0.587 G + 0.114 B in OpenCV's whole numbers, over black: where nothing was seen is no light. */
export function toGrey(rgba) {
  const grey = new Uint8Array(rgba.length / 4);
  for (let i = 0, at = 0; i < grey.length; i++, at += 4) {
    const value = (9798 * rgba[at] + 19235 * rgba[at + 1] + 3735 * rgba[at + 2] + 16384) >> 15;
    grey[i] = Math.round((value * rgba[at + 3]) / 255); // never half way between two bytes
  }
  return grey;
}

/** Whether this browser gives a canvas's pixels back as they were drawn; some change them, against fingerprinting. */
export function canvasIsExact() {
  const levels = Uint8ClampedArray.from({ length: 1024 }, (_, at) => (at % 4 === 3 ? 255 : at >> 2));
  const canvas = new OffscreenCanvas(256, 1), pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.putImageData(new ImageData(levels, 256, 1), 0, 0);
  return pen.getImageData(0, 0, 256, 1).data.every((value, at) => value === levels[at]);
}
