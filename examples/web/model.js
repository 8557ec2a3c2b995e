// Runs the model file by onnxruntime-web: in a worker, so that the page stays awake, or on the GPU where asked for.

const LEAST_SIDE = 32; // px; smaller pictures are mirrored up to it, as magtiles_seg.image.pad_to_min_side does

/** A function that answers pictures, { grey, width, height } -> the same with probability and classes added. */
export async function openModel(about, processor) {
  const ort = await import(`./${about.runtime}/ort.${processor === "webgpu" ? "webgpu" : "wasm"}.min.mjs`);
  ort.env.wasm.numThreads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  ort.env.wasm.proxy = processor === "wasm";
  const session = await ort.InferenceSession.create(`./${about.file}`, { executionProviders: [processor] });
  return async (picture) => {
    const { grey, width, height } = picture;
    const wide = Math.max(width, LEAST_SIDE), high = Math.max(height, LEAST_SIDE);
    const image = new ort.Tensor("uint8", mirrored(grey, width, height, wide, high), [1, high, wide]);
    const { probability, classes } = await session.run({ image });
    const within = (value) => Math.min(1, Math.max(0, value)); // a runtime's sigmoid may overshoot
    return { ...picture, probability: cut(probability.data, wide, width, height).map(within),
      classes: cut(classes.data, wide, width, height) };
  };
}

function mirrored(grey, width, height, wide, high) {
  if (wide === width && high === height) return grey.slice(); // the worker takes it away
  const from = (at, size) => { const turn = at % (2 * size - 2 || 1); return turn < size ? turn : 2 * size - 2 - turn; };
  return Uint8Array.from({ length: wide * high }, (_, at) =>
    grey[from(Math.floor(at / wide), height) * width + from(at % wide, width)]);
}

function cut(values, wide, width, height) {
  if (wide === width) return values.slice(0, width * height);
  const kept = new values.constructor(width * height);
  for (let y = 0; y < height; y++) kept.set(values.subarray(y * wide, y * wide + width), y * width);
  return kept;
}
