"use strict";
(() => {
  const data = document.getElementById("view");
  const viewer = document.getElementById("viewer");
  const find = (id) => document.getElementById(id);
  const framed = window.parent !== window;
  if (framed) document.body.classList.add("framed");

  // ---- keys that are not the viewer's go to the page around it ------------------------------------------------------

  const keys = {};
  const act = (key) => {
    const action = keys[key] || (/^[1-9]$/.test(key) ? keys.digit : undefined);
    if (action) action(key);
    return Boolean(action);
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(SELECT|TEXTAREA)$/.test(event.target.tagName) || event.target.type === "text";
    const sliding = event.target.type === "range" && event.key.startsWith("Arrow");
    const pressing = /^(A|BUTTON|INPUT|SUMMARY)$/.test(event.target.tagName) && /^(Enter| )$/.test(event.key);
    if (typing || sliding || pressing) return;
    if (act(event.key)) event.preventDefault();
    else if (framed) window.parent.postMessage({ key: event.key }, "*");
  });
  window.addEventListener("message", (event) => {
    if (!framed || event.source !== window.parent || !event.data) return;
    if (event.data.settings) take(event.data.settings);
    else act(String(event.data.key));
  });
  let take = () => {};

  if (!data || !viewer) return;
  const view = JSON.parse(data.textContent);
  const N = view.shape;
  const strides = [1, N[0], N[0] * N[1]];
  const PLANES = [[0, 1, 2], [0, 2, 1], [1, 2, 0]];
  const TITLES = view.letters ? ["axial", "coronal", "sagittal"] : ["X × Y", "X × Z", "Y × Z"];
  const LETTERS = view.letters ? ["RLAP", "RLSI", "APSI"] : ["", "", ""];

  const state = {
    at: view.start.slice(), plane: 0, channel: 0, opacity: 0.35, outline: true, fill: true, cross: true,
    brightness: 0, contrast: 0, hidden: new Set(), zoom: 1, pan: [0, 0], table: null,
  };
  const volume = { images: [], labels: null, reference: null, ready: false };
  const panes = [...viewer.querySelectorAll(".pane")].map((figure, number) => ({
    figure, number, canvas: figure.querySelector("canvas"), caption: figure.querySelector("figcaption"),
    slice: document.createElement("canvas"), drawn: "", place: null,
  }));

  // ---- voxels -------------------------------------------------------------------------------------------------------

  async function pixels(source) {
    const image = new Image();
    await new Promise((resolve, reject) => {
      [image.onload, image.onerror] = [resolve, reject];
      image.src = source;
    });
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const { data: values, width } = context.getImageData(0, 0, canvas.width, canvas.height);
    canvas.width = canvas.height = 0;  // phones have little memory for canvases
    return { values, width };
  }

  async function voxels(source, channels, take) {
    const { values, width } = await pixels(source);
    const found = channels(N[0] * N[1] * N[2]);
    for (let z = 0; z < N[2]; z++) {
      const left = (z % view.columns) * N[0], top = Math.floor(z / view.columns) * N[1];
      for (let y = 0; y < N[1]; y++) {
        let from = 4 * ((top + y) * width + left), to = z * strides[2] + y * strides[1];
        for (let x = 0; x < N[0]; x++, from += 4, to++) take(found, to, values, from);
      }
    }
    return found;
  }

  const greys = (source) => voxels(source, (n) => new Uint8Array(n), (a, i, v, j) => { a[i] = v[j]; });
  const colours = (source) => voxels(source, (n) => new Uint8Array(3 * n), (a, i, v, j) => {
    a[3 * i] = v[j]; a[3 * i + 1] = v[j + 1]; a[3 * i + 2] = v[j + 2];
  });
  const numbers = (source) => view.wide
    ? voxels(source, (n) => new Uint32Array(n), (a, i, v, j) => { a[i] = v[j] + 256 * v[j + 1] + 65536 * v[j + 2]; })
    : greys(source);

  // ---- what a number is ---------------------------------------------------------------------------------------------

  const code = (text, number) => parseInt(text[number - 1], 36);
  const grey = [160, 160, 160];
  let groups = new Uint8Array(1), seen = new Uint8Array(1);  // by number: the group from 1, and whether it is shown

  function groupOf(number) {
    if (!view.objects) return 1 + view.groups.findIndex((group) => group.number === number);
    return view.classOf ? code(view.classOf, number) : 1;
  }
  function sortOut() {
    const highest = volume.labels.reduce((most, number) => (number > most ? number : most), 0);
    groups = Uint8Array.from({ length: highest + 1 }, (_, number) => (number ? groupOf(number) : 0));
    look();
  }
  function look() {
    seen = groups.map((group, number) => (number > 0 && !state.hidden.has(group - 1) ? 1 : 0));
  }
  const ownGroup = (number) => view.groups[groups[number] - 1];
  const groupColour = (number) => (ownGroup(number) || { colour: grey }).colour;
  const ownColour = (number) => view.palette[code(view.colourOf, number)] || grey;
  const fillColour = (number) => (view.objects ? ownColour(number) : groupColour(number));
  const lineColour = (number) => (view.objects && !view.classOf ? fillColour(number) : groupColour(number));

  // ---- drawing ------------------------------------------------------------------------------------------------------

  function table() {
    if (!state.table) {
      const gain = Math.pow(4, state.contrast), shift = 128 * state.brightness;
      state.table = Uint8ClampedArray.from({ length: 256 }, (_, value) => (value - 128) * gain + 128 + shift);
    }
    return state.table;
  }

  function drawSlice(pane) {
    const [across, down, through] = PLANES[pane.number];
    const [w, h] = [N[across], N[down]];
    const alpha = state.fill ? state.opacity : 0;
    const hidden = [...state.hidden].join();
    const key = [state.at[through], state.channel, alpha, state.brightness, state.contrast, hidden].join("/");
    if (pane.drawn === key) return;
    pane.drawn = key;
    [pane.slice.width, pane.slice.height] = [w, h];
    const context = pane.slice.getContext("2d");
    const picture = context.createImageData(w, h), out = picture.data;
    const image = volume.images[state.channel], labels = volume.labels, shades = table();
    const bytes = view.colour ? 3 : 1, green = view.colour ? 1 : 0, blue = view.colour ? 2 : 0;
    let last = 0, colour = grey;
    for (let y = 0, to = 0; y < h; y++) {
      let from = state.at[through] * strides[through] + y * strides[down];
      for (let x = 0; x < w; x++, from += strides[across], to += 4) {
        const voxel = bytes * from, number = labels[from];
        const r = image ? shades[image[voxel]] : 0;
        const g = image ? shades[image[voxel + green]] : 0;
        const b = image ? shades[image[voxel + blue]] : 0;
        if (number !== last && seen[number]) {
          last = number;
          colour = fillColour(number);
        }
        const part = seen[number] ? alpha : 0;
        out[to] = r + (colour[0] - r) * part;
        out[to + 1] = g + (colour[1] - g) * part;
        out[to + 2] = b + (colour[2] - b) * part;
        out[to + 3] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
  }

  const outlines = new Map();

  /** Borders between numbers in a slice, as paths in voxels by colour; what is straight is one line. */
  function borders(pane, labels, kind, colourOf) {
    const [across, down, through] = PLANES[pane.number];
    const name = [kind, pane.number, state.at[through], [...state.hidden].join()].join("/");
    if (outlines.has(name)) return outlines.get(name);
    if (outlines.size > 60) outlines.delete(outlines.keys().next().value);
    const [w, h] = [N[across], N[down]], flat = new Int32Array(w * h);
    for (let y = 0, to = 0; y < h; y++) {
      let from = state.at[through] * strides[through] + y * strides[down];
      for (let x = 0; x < w; x++, from += strides[across], to++) {
        const number = labels[from];
        flat[to] = kind === "reference" || seen[number] ? number : 0;
      }
    }
    const paths = new Map(), owners = new Map();
    const pathOf = (number) => {
      if (!owners.has(number)) {
        const key = colourOf(number).join();
        if (!paths.has(key)) paths.set(key, new Path2D());
        owners.set(number, paths.get(key));
      }
      return owners.get(number);
    };
    const scan = (rows, length, next, along, put) => {
      for (let row = 1; row < rows; row++) {
        let begin = 0, owner = 0;
        for (let place = 0; place <= length; place++) {
          let here = 0;
          if (place < length) {
            const one = flat[(row - 1) * next + place * along], other = flat[row * next + place * along];
            if (one !== other) here = Math.max(one, other);
          }
          if (here === owner) continue;
          if (owner) put(pathOf(owner), row, begin, place);
          [owner, begin] = [here, place];
        }
      }
    };
    scan(w, h, 1, w, (path, x, from, to) => { path.moveTo(x, from); path.lineTo(x, to); });
    scan(h, w, w, 1, (path, y, from, to) => { path.moveTo(from, y); path.lineTo(to, y); });
    outlines.set(name, paths);
    return paths;
  }

  function placed(pane) {
    const [across, down] = PLANES[pane.number];
    const W = pane.canvas.width, H = pane.canvas.height;
    const wide = N[across] * view.sizes[across], high = N[down] * view.sizes[down];
    const zoom = pane.number === state.plane ? state.zoom : 1;
    const scale = Math.min(W / wide, H / high) * zoom;
    const pan = pane.number === state.plane ? state.pan : [0, 0];
    const sx = scale * view.sizes[across], sy = scale * view.sizes[down];
    return { sx, sy, scale, x: (W - sx * N[across]) / 2 + pan[0] * W, y: (H - sy * N[down]) / 2 + pan[1] * H };
  }

  function draw(pane) {
    const ratio = window.devicePixelRatio || 1;
    const [W, H] = [Math.round(pane.canvas.clientWidth * ratio), Math.round(pane.canvas.clientHeight * ratio)];
    if (!W || !H || !volume.ready) return;
    if (pane.canvas.width !== W || pane.canvas.height !== H) [pane.canvas.width, pane.canvas.height] = [W, H];
    drawSlice(pane);
    const place = pane.place = placed(pane);
    const [across, down] = PLANES[pane.number];
    const context = pane.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, W, H);
    context.imageSmoothingEnabled = place.sx < 24 * ratio;
    context.imageSmoothingQuality = "high";
    context.drawImage(pane.slice, place.x, place.y, place.sx * N[across], place.sy * N[down]);
    const matrix = new DOMMatrix([place.sx, 0, 0, place.sy, place.x, place.y]);
    const stroke = (paths, width, colour) => {
      context.lineWidth = width * ratio;
      for (const [key, path] of paths) {
        const scaled = new Path2D();
        scaled.addPath(path, matrix);
        context.strokeStyle = colour || `rgb(${key})`;
        context.stroke(scaled);
      }
    };
    context.lineCap = "round";
    const width = pane.number === state.plane ? 1.6 : 1.1;
    if (state.outline) stroke(borders(pane, volume.labels, "labels", lineColour), width);
    if (state.outline && volume.reference) {
      context.setLineDash([4 * ratio, 4 * ratio]);
      stroke(borders(pane, volume.reference, "reference", () => [255, 255, 255]), 1.2);
      context.setLineDash([]);
    }
    if (view.through === "slice" && state.cross) drawCross(context, pane, place, W, H, ratio);
    drawWords(context, pane, place, W, H, ratio);
  }

  function drawCross(context, pane, place, W, H, ratio) {
    const [across, down] = PLANES[pane.number];
    const x = place.x + (state.at[across] + 0.5) * place.sx, y = place.y + (state.at[down] + 0.5) * place.sy;
    const gap = 10 * ratio;
    context.strokeStyle = "rgba(255,233,168,.6)";
    context.lineWidth = ratio;
    context.beginPath();
    context.moveTo(x, 0); context.lineTo(x, y - gap); context.moveTo(x, y + gap); context.lineTo(x, H);
    context.moveTo(0, y); context.lineTo(x - gap, y); context.moveTo(x + gap, y); context.lineTo(W, y);
    context.stroke();
  }

  function drawWords(context, pane, place, W, H, ratio) {
    const write = (text, x, y, align, baseline) => {
      context.textAlign = align;
      context.textBaseline = baseline;
      context.lineWidth = 3 * ratio;
      context.strokeStyle = "rgba(0,0,0,.75)";
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    };
    const edge = 7 * ratio;
    context.font = `600 ${12 * ratio}px system-ui,sans-serif`;
    context.fillStyle = "#ffe9a8";
    const [left, right, top, bottom] = LETTERS[pane.number] || "";
    if (left) {
      write(left, edge, H / 2, "left", "middle");
      write(right, W - edge, H / 2, "right", "middle");
      if (W > 260 * ratio) write(top, W / 2, edge, "center", "top");  // else the caption is there
      write(bottom, W / 2, H - edge, "center", "bottom");
    }
    if (view.calibrated && pane.number === state.plane) {
      const room = W / 4 / place.scale;  // mm
      const power = Math.pow(10, Math.floor(Math.log10(room)));
      const length = [5, 2, 1].map((n) => n * power).find((n) => n <= room);
      const told = length >= 1 ? `${length} mm` : `${+(1000 * length).toPrecision(3)} µm`;
      context.fillStyle = "#fff";
      context.fillRect(edge, H - edge - 3 * ratio, length * place.scale, 3 * ratio);
      write(told, edge, H - edge - 7 * ratio, "left", "bottom");
    }
  }

  function stored(axis) {
    const [first, step, count] = view.axes[axis];
    return Math.min(count, Math.max(1, first + step * state.at[axis]));
  }

  function caption(pane) {
    if (!view.through) return "";
    const through = PLANES[pane.number][2];
    const title = view.through === "frame" ? "frame" : TITLES[pane.number];
    return `${title} ${stored(through)}/${view.axes[through][2]}`;
  }

  let asked = false;
  function redraw() {
    if (framed && volume.ready) window.parent.postMessage({ settings: kept() }, "*");
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      for (const pane of panes) {
        pane.figure.classList.toggle("main", pane.number === state.plane);
        pane.caption.textContent = caption(pane);
        draw(pane);
      }
      const through = PLANES[state.plane][2], slider = find("slice");
      if (slider) {
        slider.max = N[through] - 1;
        slider.value = state.at[through];
        slider.setAttribute("aria-valuetext", caption(panes[state.plane]));
        find("place").textContent = caption(panes[state.plane]);
      }
    });
  }

  // ---- settings that stay from case to case -------------------------------------------------------------------------

  const kept = () => {
    const { plane, opacity, outline, fill, cross } = state;
    return { plane, opacity, outline, fill, cross };
  };
  take = (settings) => {
    Object.assign(state, settings, { plane: Math.min(settings.plane, panes.length - 1) });
    find("opacity").value = 100 * state.opacity;
    find("outline").checked = state.outline;
    find("fill").checked = state.fill;
    redraw();
  };

  // ---- moving -------------------------------------------------------------------------------------------------------

  const inside = (value, axis) => Math.min(N[axis] - 1, Math.max(0, value));
  function step(count) {
    const through = PLANES[state.plane][2];
    state.at[through] = inside(state.at[through] + count, through);
    redraw();
  }
  function show(plane) {
    if (plane === state.plane) return;
    state.plane = plane;
    state.zoom = 1;
    state.pan = [0, 0];
    redraw();
  }
  function zoom(factor, pane, x, y) {
    const before = placed(pane), W = pane.canvas.width, H = pane.canvas.height;
    const next = Math.min(40, Math.max(1, state.zoom * factor));
    const u = (x - before.x) / before.sx, v = (y - before.y) / before.sy;
    state.zoom = next;
    const after = placed(pane);
    state.pan = next === 1 ? [0, 0]
      : [state.pan[0] + (x - after.x - u * after.sx) / W, state.pan[1] + (y - after.y - v * after.sy) / H];
    redraw();
  }
  function under(pane, event) {
    const ratio = pane.canvas.width / pane.canvas.clientWidth;
    const box = pane.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) * ratio, y = (event.clientY - box.top) * ratio;
    const [across, down] = PLANES[pane.number], place = pane.place || placed(pane);
    const voxel = [Math.floor((x - place.x) / place.sx), Math.floor((y - place.y) / place.sy)];
    const isInside = voxel[0] >= 0 && voxel[1] >= 0 && voxel[0] < N[across] && voxel[1] < N[down];
    return { x, y, voxel, isInside };
  }

  const told = new Map((view.rows || []).map((row) => [row[0], row]));
  function tell(pane, event) {
    const { voxel, isInside } = under(pane, event);
    const [across, down, through] = PLANES[pane.number];
    let text = "";
    if (isInside && volume.ready) {
      const index = voxel[0] * strides[across] + voxel[1] * strides[down] + state.at[through] * strides[through];
      const number = volume.labels[index];
      if (number) {
        const own = ownGroup(number);
        const row = told.get(number);
        text = (own ? own.name : "label") + (view.objects ? ` ${number}` : "");
        if (row && row[1] !== null) text += ` · ${row[1]} ${view.unit}`;
        if (row && row[2] !== null) text += ` · confidence ${row[2].toFixed(2)}`;
      }
    }
    find("under").textContent = text;
  }

  const isPicture = view.through !== "slice";
  for (const pane of panes) {
    let held = null;
    pane.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      const mouse = event.pointerType === "mouse";
      held = { x: event.clientX, y: event.clientY, pan: state.pan.slice(), moved: false, mouse };
      if (mouse) pane.canvas.setPointerCapture(event.pointerId);
      if (mouse && !isPicture && !event.shiftKey) cross(pane, event);
    });
    pane.canvas.addEventListener("pointermove", (event) => {
      tell(pane, event);
      if (!held || !held.mouse) return;
      if (isPicture || event.shiftKey) {
        if (pane.number !== state.plane || state.zoom === 1) return;
        state.pan = [held.pan[0] + (event.clientX - held.x) / pane.canvas.clientWidth,
          held.pan[1] + (event.clientY - held.y) / pane.canvas.clientHeight];
        redraw();
      } else cross(pane, event);
    });
    pane.canvas.addEventListener("pointerup", (event) => {
      if (held && !held.mouse && Math.hypot(event.clientX - held.x, event.clientY - held.y) < 10) {
        if (!isPicture) cross(pane, event);
        tell(pane, event);
      }
      held = null;
    });
    pane.canvas.addEventListener("pointercancel", () => { held = null; });
    pane.canvas.addEventListener("pointerleave", () => { find("under").textContent = ""; });
    pane.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (isPicture && !view.through || event.ctrlKey || event.shiftKey) {
        const { x, y } = under(pane, event);
        if (pane.number !== state.plane) show(pane.number);
        zoom(Math.pow(1.0015, -(event.deltaY || event.deltaX)), pane, x, y);
      } else {
        const through = PLANES[pane.number][2];
        state.at[through] = inside(state.at[through] + Math.sign(event.deltaY), through);
        redraw();
      }
    }, { passive: false });
    pane.canvas.addEventListener("dblclick", () => { state.zoom = 1; state.pan = [0, 0]; redraw(); });
    pane.caption.addEventListener("click", () => show(pane.number));
    new ResizeObserver(redraw).observe(pane.canvas);
  }

  function cross(pane, event) {
    const { voxel } = under(pane, event);
    const [across, down] = PLANES[pane.number];
    state.at[across] = inside(voxel[0], across);
    state.at[down] = inside(voxel[1], down);
    redraw();
  }

  // ---- controls -----------------------------------------------------------------------------------------------------

  const onInput = (id, action) => {
    const element = find(id);
    if (element) element.addEventListener("input", () => { action(element); redraw(); });
  };
  onInput("slice", (element) => { state.at[PLANES[state.plane][2]] = +element.value; });
  onInput("outline", (element) => { state.outline = element.checked; });
  onInput("fill", (element) => { state.fill = element.checked; });
  onInput("opacity", (element) => { state.opacity = element.value / 100; });
  onInput("brightness", (element) => { state.brightness = element.value / 100; state.table = null; });
  onInput("contrast", (element) => { state.contrast = element.value / 100; state.table = null; });
  onInput("channel", (element) => { state.channel = +element.value; });
  for (const box of viewer.querySelectorAll("[data-group]")) {
    box.addEventListener("input", () => {
      if (box.checked) state.hidden.delete(+box.dataset.group);
      else state.hidden.add(+box.dataset.group);
      look();
      redraw();
    });
  }
  for (const button of document.querySelectorAll("[data-centre]")) {
    button.addEventListener("click", () => {
      state.at = button.dataset.centre.split(",").map(Number);
      viewer.scrollIntoView({ block: "nearest" });
      redraw();
    });
  }
  const press = (id) => () => { const element = find(id); if (element) element.click(); };
  const push = (id, by) => () => {
    const element = find(id);
    element.value = +element.value + by;
    element.dispatchEvent(new Event("input"));
  };
  const middle = () => { const { canvas } = panes[state.plane]; return [canvas.width / 2, canvas.height / 2]; };
  Object.assign(keys, {
    o: press("outline"), f: press("fill"),
    "-": push("opacity", -10), "+": push("opacity", 10), "=": push("opacity", 10),
    p: () => show((state.plane + 1) % panes.length),
    x: () => { state.cross = !state.cross; redraw(); },
    z: () => zoom(1.5, panes[state.plane], ...middle()), Z: () => zoom(1 / 1.5, panes[state.plane], ...middle()),
    0: () => { state.zoom = 1; state.pan = [0, 0]; state.at = view.start.slice(); redraw(); },
    m: () => {
      const element = find("channel");
      if (!element) return;
      element.value = (+element.value + 1) % element.options.length;
      element.dispatchEvent(new Event("input"));
    },
    digit: (key) => { const box = viewer.querySelector(`[data-group="${key - 1}"]`); if (box) box.click(); },
  });

  if (view.through) {
    Object.assign(keys, {
      ArrowUp: () => step(-1), ArrowDown: () => step(1), PageUp: () => step(-10), PageDown: () => step(10),
    });
  }

  (async () => {
    try {
      volume.labels = await numbers(view.labels);
      for (const source of view.images) volume.images.push(await (view.colour ? colours : greys)(source));
      if (view.reference) volume.reference = await numbers(view.reference);
      sortOut();
      volume.ready = true;
      viewer.dataset.state = "ready";
    } catch (error) {
      viewer.dataset.state = "failed";
      find("under").textContent = "The pictures cannot be shown by this browser.";
      return;
    }
    if (framed) window.parent.postMessage({ ready: true }, "*");
    redraw();
  })();
})();
