// From a file to grey bytes, by the rules of magtiles_seg/image.py as far as a browser can keep them exactly.

export const MOST_PIXELS = 4_000_000; // of a larger picture the network's layers do not fit into a phone's memory

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
  let bitmap;
  try { // no colour management, no multiplication by alpha: the stored values count
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error("a damaged picture, or of a kind that this browser does not decode; save it as PNG again");
  }
  const { width, height } = bitmap;
  if (Math.max(width, 32) * Math.max(height, 32) > MOST_PIXELS)
    throw new Error(`${height} x ${width} px; expected at most ${MOST_PIXELS.toLocaleString("en")}; cut the picture into parts`);
  let rgba = drawnPixels(bitmap);
  if (rgba.some((value, at) => at % 4 === 3 && value > 0 && value < 255)) rgba = await unmultiplied(file) ?? rgba;
  return { grey: toGrey(rgba), width, height };
}

/** The RGBA bytes of an image, bitmap or video frame. Exact where alpha is 0 or 255: a canvas multiplies by it. */
export function drawnPixels(source, width = source.width, height = source.height) {
  const canvas = new OffscreenCanvas(width, height), pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(source, 0, 0);
  return pen.getImageData(0, 0, width, height).data;
}

/** The RGBA bytes of a file with translucent pixels, as they are stored; null where the browser has no ImageDecoder. */
async function unmultiplied(file) {
  if (!("ImageDecoder" in globalThis)) return null;
  const decoder = new ImageDecoder({ data: await file.arrayBuffer(), type: file.type || "image/png",
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
