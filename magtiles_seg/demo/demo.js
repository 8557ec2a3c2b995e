// A click on a row of the table frames its region on the picture; Enter does the same.
(() => {
  const frameOf = (row) => {
    const slider = document.querySelector("#overlay");
    const image = slider && slider.querySelector("img");
    if (!image || !image.clientHeight || !row.dataset.box) return null; // it comes after the table
    const [x0, y0, x1, y1, width, height] = row.dataset.box.split(",").map(Number);
    const outer = slider.getBoundingClientRect();
    const inner = image.getBoundingClientRect();
    const scale = Math.min(inner.width / width, inner.height / height); // as `object-fit: contain`
    const left = inner.left - outer.left + (inner.width - scale * width) / 2;
    const top = inner.top - outer.top + (inner.height - scale * height) / 2;
    const frame = document.createElement("div");
    frame.id = "region";
    Object.assign(frame.style, {
      left: `${left + scale * x0 - 6}px`,
      top: `${top + scale * y0 - 6}px`,
      width: `${scale * (x1 - x0) + 12}px`,
      height: `${scale * (y1 - y0) + 12}px`,
    });
    return slider.appendChild(frame);
  };
  let chosen = null;
  let box = ""; // of the row when it was chosen: Gradio writes another answer into the same rows
  const holds = () => chosen && chosen.isConnected && chosen.dataset.box === box;
  const place = () => { // anew when the page changes its size; gone when another answer is shown
    document.querySelectorAll("#region").forEach((old) => old.remove());
    document.querySelectorAll("#defects tr.chosen").forEach((old) => old.classList.remove("chosen"));
    const frame = holds() ? frameOf(chosen) : null;
    if (frame) chosen.classList.add("chosen");
    return frame;
  };
  const choose = (row) => {
    chosen = row;
    box = row.dataset.box;
    const frame = place();
    if (frame) frame.scrollIntoView({block: "nearest", behavior: "smooth"});
  };
  const rowOf = (event) => event.target.closest && event.target.closest("#defects tbody tr");
  document.addEventListener("click", (event) => rowOf(event) && choose(rowOf(event)));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && rowOf(event)) choose(rowOf(event));
  });
  const isOverlay = (event) => event.target.closest && event.target.closest("#overlay");
  document.addEventListener("load", (event) => isOverlay(event) && place(), true);
  window.addEventListener("resize", place);
  const filesOf = async (entry) => { // of a folder and those below it; hidden ones are none
    if (entry.name.startsWith(".")) return [];
    if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
    const reader = entry.createReader();
    const found = [];
    for (;;) { // it tells some of them at a time
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!some.length) return found;
      for (const one of some) found.push(...await filesOf(one));
    }
  };
  const give = (input, files) => {
    const given = new DataTransfer();
    files.forEach((file) => given.items.add(file));
    input.files = given.files;
    input.dispatchEvent(new Event("change", {bubbles: true}));
  };
  // Gradio loses a picture that is shown with what is dropped on it, takes nothing on a list of files
  // that is shown, and cannot read a folder.
  const inputAt = (event) => {
    const area = event.target.closest && event.target.closest("#picture, #many");
    return area && area.querySelector("input[type=file]");
  };
  window.addEventListener("dragover", (event) => { // after Gradio, which moves what is on a list
    const isTaken = inputAt(event);
    if (!isTaken && (event.defaultPrevented || !event.dataTransfer.types.includes("Files"))) return;
    event.preventDefault(); // beside the areas, the browser would open a file
    event.dataTransfer.dropEffect = isTaken ? "copy" : "none";
  });
  document.addEventListener("drop", async (event) => {
    const input = inputAt(event);
    if (!input) return;
    event.preventDefault();
    event.stopPropagation();
    event.target.dispatchEvent(new DragEvent("dragleave", {bubbles: true}));
    const found = [...event.dataTransfer.items].map((item) => { // empty once this returns
      const entry = input.multiple && item.webkitGetAsEntry();
      return entry && entry.isDirectory ? filesOf(entry) : item.getAsFile();
    });
    const files = (await Promise.all(found)).flat().filter(Boolean); // none of a text or a link
    if (files.length) give(input, input.multiple ? files : files.slice(0, 1));
  }, true);
  const nameButtons = () => { // Gradio leaves those of its pictures without a name
    for (const button of document.querySelectorAll(".gradio-container button:not([aria-label])")) {
      if (!button.textContent.trim()) button.setAttribute("aria-label", button.title || "Show the picture");
    }
  };
  const middleOf = (element) => {
    const box = element.getBoundingClientRect();
    return {x: box.x + box.width / 2, y: box.y + box.height / 2};
  };
  const tellLine = (line) => {
    const {x, width} = line.parentElement.getBoundingClientRect();
    const share = Math.round((100 * (middleOf(line).x - x)) / (width || 1));
    line.setAttribute("aria-valuenow", Math.min(100, Math.max(0, share)));
  };
  const moveLine = (line, by) => { // as the pointer would, to which alone Gradio gives it
    const {x, y: clientY} = middleOf(line);
    const send = (target, type, clientX) => target.dispatchEvent(
      new MouseEvent(type, {bubbles: true, cancelable: true, view: window, clientX, clientY}));
    send(line, "mousedown", x);
    send(window, "mousemove", x + by);
    send(window, "mouseup", x + by);
    requestAnimationFrame(() => tellLine(line));
  };
  const steps = {ArrowLeft: -0.05, ArrowDown: -0.05, ArrowRight: 0.05, ArrowUp: 0.05, Home: -1, End: 1};
  const nameLine = () => {
    const line = document.querySelector("#overlay [data-testid=slider]");
    if (!line || line.tabIndex === 0) return;
    Object.assign(line, {tabIndex: 0, role: "slider", ariaLabel: "Show the picture without defects up to here"});
    tellLine(line);
    line.addEventListener("focus", () => tellLine(line)); // the pointer may have moved it
    line.addEventListener("keydown", (event) => {
      if (!(event.key in steps)) return;
      event.preventDefault();
      moveLine(line, steps[event.key] * line.parentElement.clientWidth);
    });
  };
  nameButtons();
  nameLine();
  new MutationObserver(() => { // Gradio may draw the table or the picture anew
    nameButtons();
    nameLine();
    if (!chosen || (holds() && document.querySelector("#region"))) return;
    if (!holds()) chosen = null;
    place();
  }).observe(document, {childList: true, subtree: true, attributes: true, attributeFilter: ["data-box"]});
})();
