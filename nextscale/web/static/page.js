// The page of nextscale: photographs go to /api/jobs, and what comes back is shown at any zoom.

const $ = (id) => document.getElementById(id);
const server = await (await fetch("/api")).json();
const LARGEST = Math.max(...server.factors);
const AT_WORK = 3; // photographs of this page that the server has at once
const QUICK = 90; // seconds; what takes longer is asked for first
const PREVIEW = 1600;

const entries = []; // the photographs of this page, oldest first
let current = null;

const el = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const announce = (text) => { $("live").textContent = text; };
const percent = (share) => `${Math.floor(share * 100)} %`;
const duration = (seconds) =>
  seconds < 90 ? `${Math.round(seconds)} s`
    : seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 1800) / 2} h`;
const about = (seconds) => (seconds < 5 ? "a few seconds" : `about ${duration(seconds)}`);
const ordinal = (n) => `${n}${["th", "st", "nd", "rd"][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10 < 4 ? n % 10 : 0]}`;
const factorOf = (key) => Number(key.slice(1));
const ended = (entry) => ["done", "stopped", "failed"].includes(entry.state);

// ---- photographs come in --------------------------------------------------------------------------------------------

function add(files) {
  const added = [...files].map((file) => ({ file, name: file.name || "photograph", state: "opening", share: 0 }));
  if (!added.length) return;
  entries.push(...added);
  open(added[0]);
  for (const entry of added) prepare(entry);
}

// A first look by the browser itself: size and preview, long before the server has it.
async function prepare(entry) {
  if (entry.file.type && !entry.file.type.startsWith("image/")) return fail(entry, "This is not a photograph.");
  if (entry.file.size > server.limits.upload_bytes) {
    return fail(entry, `The file has ${megabytes(entry.file.size)}, and the limit is ${megabytes(server.limits.upload_bytes)}. Save it as a JPEG.`);
  }
  const address = URL.createObjectURL(entry.file);
  try {
    const image = new Image();
    await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: reject, src: address }));
    entry.size = [image.naturalWidth, image.naturalHeight];
    const share = Math.min(1, PREVIEW / Math.max(...entry.size));
    entry.bitmap = await createImageBitmap(image, {
      resizeWidth: Math.max(1, Math.round(entry.size[0] * share)),
      resizeHeight: Math.max(1, Math.round(entry.size[1] * share)), resizeQuality: "medium",
    });
  } catch { /* a format that this browser does not show; the server does */ } finally { URL.revokeObjectURL(address); }
  if (entry === current) view.fit();
  await enqueue(entry);
}

// To the server in its turn, or first the question what is to come of it.
async function enqueue(entry) {
  if (entry.size) await choose(entry);
  if (entry.state === "opening") entry.state = "queued"; // else it was stopped, has failed, or waits for an answer
  update();
  sendNext();
}

// What fits this server, before anything is sent.
async function choose(entry) {
  const settings = collect();
  const wanted = Number(settings.scale);
  const ask = async (fast) => {
    const query = new URLSearchParams({ width: entry.size[0], height: entry.size[1] });
    if (settings.cfg) query.set("cfg", settings.cfg);
    if (!server.factors.includes(wanted)) query.set("scale", wanted);
    if (fast) query.set("fast", "true");
    return (await fetch(`/api/plan?${query}`)).json();
  };
  let plan;
  try {
    plan = await ask(settings.fast);
    entry.plan = plan.factors;
    if (server.has_fast) entry.quick = (await ask(true)).factors;
  } catch { return; }
  if (!entry.plan) return fail(entry, plan.error); // an option out of range
  const fitting = entry.plan.filter((row) => row.fits);
  if (!fitting.length) return fail(entry, entry.plan[0].error);
  const best = fitting.filter((row) => row.factor <= wanted).at(-1) ?? fitting[0];
  entry.settings = { ...settings, scale: best.factor };
  entry.reduced = best.factor < wanted;
  if (entry.state === "opening" && (entry.reduced || best.seconds > QUICK)) entry.state = "choosing";
}

const megabytes = (bytes) => (bytes < 95e4 ? `${Math.ceil(bytes / 1e3)} kB` : `${Math.round(bytes / 1e5) / 10} MB`);
const megapixels = ([width, height]) => `${Math.round(width * height / 1e5) / 10} megapixels`;

function fail(entry, message) {
  Object.assign(entry, { state: "failed", message });
  announce(message);
  update();
  sendNext();
}

// ---- to the server and back -----------------------------------------------------------------------------------------

function sendNext() {
  const busy = entries.filter((entry) => ["sending", "waiting", "running"].includes(entry.state));
  const next = entries.find((entry) => entry.state === "queued");
  if (next && busy.length < AT_WORK && !busy.some((entry) => entry.state === "sending")) send(next);
}

function send(entry) {
  const form = new FormData();
  const settings = entry.settings ?? collect();
  for (const [key, value] of Object.entries(settings)) form.append(key, value);
  form.append("image", entry.file, entry.name);
  const request = new XMLHttpRequest();
  Object.assign(entry, { state: "sending", share: 0, job: null, request, message: null, shown: null });
  request.upload.onprogress = (event) => { entry.share = event.loaded / event.total; update(); };
  request.onload = () => {
    let answer = {};
    try { answer = JSON.parse(request.responseText); } catch { /* not ours */ }
    if (request.status === 201) {
      keep(entry, answer);
      listen(entry);
      remember();
    } else if ([429, 503].includes(request.status)) {
      const seconds = Number(request.getResponseHeader("Retry-After") ?? 15);
      Object.assign(entry, { state: "held", message: `${answer.error ?? "The server is busy."} Trying again in ${seconds} s.` });
      entry.timer = setTimeout(() => { if (entry.state === "held") { entry.state = "queued"; sendNext(); } }, seconds * 1000);
    } else fail(entry, answer.error ?? "The server did not take it.");
    update();
    sendNext();
  };
  request.onerror = async () => {
    const isThere = await entry.file.slice(0, 1).arrayBuffer().then(() => true, () => false);
    fail(entry, isThere ? "The server cannot be reached. Is it still running?"
      : "The file cannot be read: it is a folder, has changed or is gone. Choose it again.");
  };
  request.open("POST", "/api/jobs");
  request.send(form);
  update();
}

function keep(entry, job) {
  const before = entry.job;
  Object.assign(entry, { job, state: job.state, share: job.share, message: job.error });
  entry.size = [job.input.width, job.input.height];
  for (const [key, result] of Object.entries(job.results)) {
    if (result.complete && !before?.results[key]?.complete && before) announce(`${key} is ready.`);
    if (result.preview > (before?.results[key]?.preview ?? 0) && !result.stored) loadPreview(entry, key, result.preview);
  }
  if (ended(entry) && before && before.state !== job.state) {
    announce(job.state === "done" ? `${entry.name} is done.` : job.state === "stopped" ? "Stopped." : job.error);
    sendNext();
  }
}

async function loadPreview(entry, key, number) {
  const image = new Image();
  image.src = `/api/jobs/${entry.job.id}/${key}-preview.jpg?${number}`;
  try { await image.decode(); } catch { return; }
  entry.previews ??= {};
  if ((entry.previews[key]?.number ?? 0) < number) entry.previews[key] = { image, number };
  update();
}

function listen(entry) {
  const stream = new EventSource(`/api/jobs/${entry.job.id}/events`);
  const take = (event) => {
    if (!event.data) { // the connection, not the job; it comes back by itself unless the job is gone
      if (stream.readyState === EventSource.CLOSED) refresh(entry);
      return;
    }
    keep(entry, JSON.parse(event.data));
    if (ended(entry)) stream.close();
    update();
  };
  for (const kind of ["waiting", "progress", "ready", "done", "stopped", "error"]) stream.addEventListener(kind, take);
}

async function refresh(entry) {
  try {
    const answer = await fetch(`/api/jobs/${entry.job.id}`);
    if (answer.status === 404) return fail(entry, "The server does not have it any more.");
    keep(entry, await answer.json());
    if (!ended(entry)) setTimeout(listen, 2000, entry);
  } catch { setTimeout(refresh, 3000, entry); }
  update();
}

function stop(entry) {
  if (entry.state === "sending") entry.request.abort();
  else if (entry.job) return fetch(`/api/jobs/${entry.job.id}`, { method: "DELETE" });
  clearTimeout(entry.timer);
  Object.assign(entry, { state: "stopped", message: null });
  update();
  sendNext();
}

// A reload keeps what the server still has.
const remember = () => sessionStorage.setItem("jobs", JSON.stringify(entries.filter((e) => e.job).map((e) => [e.job.id, e.name])));

async function recall() {
  for (const [id, name] of JSON.parse(sessionStorage.getItem("jobs") ?? "[]")) {
    const answer = await fetch(`/api/jobs/${id}`);
    if (!answer.ok) continue;
    const entry = { name, state: "opening" };
    keep(entry, await answer.json());
    entries.push(entry);
    if (!ended(entry)) listen(entry);
  }
  if (entries.length) open(entries.at(-1));
}

// ---- what is shown --------------------------------------------------------------------------------------------------

function open(entry) {
  current = entry;
  document.body.dataset.state = "open";
  $("welcome").hidden = true;
  $("viewer").hidden = false;
  update();
  view.resize();
  view.fit();
}

// The result to show: the one that was chosen, else the largest of which there is something.
function shownKey(entry) {
  const results = entry.job?.results ?? {};
  const there = Object.keys(results).filter((key) => results[key].view || entry.previews?.[key]);
  if (entry.shown && there.includes(entry.shown)) return entry.shown;
  return there.sort((a, b) => factorOf(a) - factorOf(b)).at(-1) ?? null;
}

let pending = false;
function update() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; render(); });
}

function render() {
  renderStrip();
  const done = entries.filter((entry) => entry.job && Object.values(entry.job.results).some((result) => result.stored));
  $("zip").hidden = done.length < 2;
  $("zip").href = `/api/zip?jobs=${done.map((entry) => entry.job.id)}&format=${$("format").value || "png"}`;
  const entry = current;
  if (!entry) return;
  const key = shownKey(entry), result = key && entry.job.results[key];
  const [width, height] = result ? [result.width, result.height] : entry.size ?? [0, 0];
  $("title").textContent = entry.name + (width ? ` · ${width} × ${height}` : "");
  document.title = `${entry.state === "running" ? `${percent(entry.share)} ` : ""}${entry.name} · nextscale`;
  renderFactors(entry, key);
  renderProgress(entry);
  renderChooser(entry);
  $("failure").hidden = entry.state !== "failed" || Boolean(result);
  $("failure-text").textContent = entry.message ?? "";
  $("line").hidden = !key;
  const has = Boolean(result?.has_overlay);
  $("overlay").disabled = !has;
  $("overlay").setAttribute("aria-pressed", String(has && view.overlay));
  $("legend").hidden = !(has && view.overlay);
  $("legend-mean").textContent = result?.mean_error ? `±${Math.round(result.mean_error)} of 255 on average` : "";
  $("save").setAttribute("aria-disabled", String(!result?.stored));
  if (result?.stored) {
    renderFormats(result.formats, result.bytes);
    $("save").href = `/api/jobs/${entry.job.id}/${key}.${$("format").value}`;
    $("save").textContent = `Save ${key}`;
  } else {
    renderFormats(["png", "jpg", "webp"]);
    $("save").removeAttribute("href");
    $("save").textContent = "Save";
  }
  $("format").disabled = !result?.stored;
  $("note").textContent = entry.state === "stopped" ? (key ? `Stopped at ${percent(entry.share)}. The rest is your photograph, enlarged.` : "Stopped.")
    : entry.state === "done" ? `Faces, text and numbers may be invented.${has ? " The map shows where the result may be off." : ""}`
    : entry.state === "failed" && result ? entry.message : "";
  $("again").hidden = !(entry.file && (ended(entry) || entry.state === "choosing"));
  $("canvas").setAttribute("aria-label", key ? `${entry.name}, before on the left of the line and ${key} on the right` : entry.name);
  view.draw();
}

function renderFormats(formats, bytes) {
  const select = $("format"), state = JSON.stringify([formats, bytes]);
  if (select.dataset.state === state) return;
  const before = select.value;
  const names = { png: bytes ? `PNG, ${megabytes(bytes)}` : "PNG", jpg: "JPEG", webp: "WebP" };
  select.dataset.state = state;
  select.replaceChildren(...formats.map((name) => el("option", { value: name, textContent: names[name] })));
  if (formats.includes(before)) select.value = before;
}

function renderFactors(entry, key) {
  const names = entry.job ? Object.keys(entry.job.results) : [];
  const box = $("factors");
  box.hidden = !names.length;
  const there = names.map((name) => Boolean(entry.job.results[name].view || entry.previews?.[name]));
  const state = JSON.stringify([names, there]);
  if (box.dataset.state !== state) {
    box.dataset.state = state;
    box.replaceChildren(box.firstElementChild, ...names.map((name, index) => {
      const radio = el("input", { type: "radio", name: "shown", value: name, disabled: !there[index] });
      radio.onchange = () => { current.shown = name; render(); };
      return el("label", {}, radio, el("span", { textContent: name }));
    }));
  }
  for (const radio of box.querySelectorAll("input")) radio.checked = radio.value === key;
}

function renderProgress(entry) {
  const texts = {
    opening: "Opening", queued: "Waiting for the photograph before it", held: entry.message, sending: `Sending, ${percent(entry.share)}`,
    waiting: entry.job?.place > 1 ? `${ordinal(entry.job.place)} in the queue` : "Next in the queue",
    running: entry.share > 0.998 ? "Writing the files" : percent(entry.share) + (entry.job?.seconds_left ? `, ${about(entry.job.seconds_left)} left` : ""),
  };
  $("progress").hidden = !(entry.state in texts);
  $("status").textContent = texts[entry.state] ?? "";
  if (entry.state in texts && entry.state !== "waiting" && entry.state !== "queued") $("bar").value = entry.share ?? 0;
}

function renderChooser(entry) {
  const show = entry.state === "choosing";
  const opened = show && $("chooser").hidden;
  $("chooser").hidden = !show;
  if (!show) return;
  const fast = $("chooser-fast").checked, plan = fast && entry.quick ? entry.quick : entry.plan;
  $("chooser-title").textContent = megapixels(entry.size);
  $("chooser-note").textContent = entry.reduced ? "A large photograph: not every size fits this server." : "This will take a while here.";
  $("chooser-fast-row").hidden = !server.has_fast;
  const state = JSON.stringify([entries.indexOf(entry), plan]);
  if ($("chooser-rows").dataset.state !== state) {
    $("chooser-rows").dataset.state = state;
    $("chooser-rows").replaceChildren(...plan.map((row) => {
      const [width, height] = entry.size.map((side) => Math.round(side * row.factor));
      const radio = el("input", { type: "radio", name: "chosen", value: row.factor, disabled: !row.fits, checked: row.fits && row.factor === entry.settings.scale });
      radio.onchange = () => { entry.settings.scale = row.factor; };
      const time = !row.fits ? "too large" : row.seconds === null ? "" : about(row.seconds);
      return el("label", { className: row.fits ? "" : "off" }, radio, el("b", { textContent: `x${row.factor}` }),
        el("span", { textContent: `${width} × ${height}` }), el("span", { className: "time", textContent: time }));
    }));
  }
  if (opened) $("chooser-title").focus();
}

function renderStrip() {
  const strip = $("strip");
  strip.hidden = entries.length < 2;
  entries.forEach((entry, index) => {
    let button = strip.children[index];
    if (!button) {
      button = el("button", { type: "button" }, el("canvas", { width: 128, height: 96 }), el("i"));
      button.onclick = () => open(entries[index]);
      strip.append(button);
    }
    button.className = entry.state;
    button.setAttribute("aria-pressed", String(entry === current));
    button.setAttribute("aria-label", `${entry.name}, ${entry.state === "running" ? percent(entry.share) : entry.state}`);
    button.lastElementChild.style.width = ended(entry) ? "0" : `${(entry.share ?? 0) * 100}%`;
    const source = entry.bitmap ?? (entry.job?.input.view && tile(layerOf(entry, "original"), entry.job.input.view.levels - 1, 0, 0));
    if (source && !button.dataset.drawn) {
      const scale = Math.max(128 / source.width, 96 / source.height), [w, h] = [source.width * scale, source.height * scale];
      button.firstElementChild.getContext("2d").drawImage(source, (128 - w) / 2, (96 - h) / 2, w, h);
      button.dataset.drawn = "1";
    }
  });
}

// ---- pictures in tiles ----------------------------------------------------------------------------------------------

const tiles = new Map(); // address -> image, in order of use
const KEPT = 100; // and whatever the last two frames show: a large screen takes more
let frame = 0;

function image(address) {
  let found = tiles.get(address);
  if (found) tiles.delete(address);
  else {
    found = new Image();
    found.src = address;
    found.decode().then(() => { found.ready = true; update(); }, () => {});
    for (const [oldest, old] of tiles) {
      if (tiles.size < KEPT || old.frame >= frame - 1) break;
      tiles.delete(oldest);
    }
  }
  found.frame = frame;
  tiles.set(address, found);
  return found.ready ? found : null;
}

const layerOf = (entry, name) => ({
  address: `/api/jobs/${entry.job.id}/view/${name}`, view: name === "original" ? entry.job.input.view : entry.job.results[name].view,
});
const tile = (layer, level, column, row) => image(`${layer.address}/${level}_${column}_${row}.${layer.view.suffix}`);

// ---- the viewer -----------------------------------------------------------------------------------------------------

const view = {
  canvas: $("canvas"), context: $("canvas").getContext("2d"), scale: 1, x: 0, y: 0, fitted: true, line: 0.5, held: false, overlay: false,

  get size() { return current?.size ?? [1, 1]; },
  // Device pixels per result pixel at 100 %.
  get factor() { const key = current && shownKey(current); return key ? factorOf(key) : 1; },
  get fitScale() { return Math.min(this.canvas.width / this.size[0], this.canvas.height / this.size[1]); },

  resize() {
    const ratio = window.devicePixelRatio || 1, stage = $("stage");
    const [width, height] = [Math.round(stage.clientWidth * ratio), Math.round(stage.clientHeight * ratio)];
    if (this.canvas.width === width && this.canvas.height === height) return;
    const [dx, dy] = [(width - this.canvas.width) / 2, (height - this.canvas.height) / 2];
    Object.assign(this.canvas, { width, height });
    if (this.fitted) this.fit(); else this.move(dx, dy);
    this.draw();
  },
  fit() { this.scale = this.fitScale; this.fitted = true; this.move(0, 0); },
  full() { this.zoomTo(this.factor); },
  zoomTo(scale, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    const least = Math.min(this.fitScale, this.factor), bounded = Math.min(Math.max(scale, least), 16 * LARGEST);
    const share = bounded / this.scale;
    this.x = x - (x - this.x) * share;
    this.y = y - (y - this.y) * share;
    this.scale = bounded;
    this.fitted = Math.abs(bounded / this.fitScale - 1) < 0.001;
    this.move(0, 0);
  },
  move(dx, dy) {
    const bound = (place, side, room) => (side <= room ? (room - side) / 2 : Math.min(0, Math.max(room - side, place)));
    this.x = bound(this.x + dx, this.size[0] * this.scale, this.canvas.width);
    this.y = bound(this.y + dy, this.size[1] * this.scale, this.canvas.height);
    update();
  },
  setLine(share) {
    this.line = Math.min(1, Math.max(0, share));
    $("line").style.left = `${this.line * 100}%`;
    const value = Math.round(this.line * 100);
    $("line").setAttribute("aria-valuenow", value);
    $("line").setAttribute("aria-valuetext", `${value} % before, ${100 - value} % after`);
    update();
  },

  draw() {
    const { canvas, context } = this, line = this.held ? 1 : this.line, entry = current, key = entry && shownKey(entry);
    frame++;
    context.clearRect(0, 0, canvas.width, canvas.height);
    const touched = Boolean(key), scale = entry?.size ? percentText(this.scale / this.factor) : "–";
    $("percent").textContent = scale;
    $("percent").setAttribute("aria-label", `${scale}; full size`);
    $("tag-before").classList.toggle("on", touched && line > 0.12);
    $("tag-after").classList.toggle("on", touched && line < 0.88);
    $("tag-after").textContent = key ? `after, ${key}` : "after";
    if (!entry?.size) return;
    const edge = key ? Math.round(line * canvas.width) : canvas.width;
    this.clip(0, edge, () => this.drawBefore(entry));
    if (key) this.clip(edge, canvas.width, () => this.drawAfter(entry, key));
  },
  clip(left, right, paint) {
    this.context.save();
    this.context.beginPath();
    this.context.rect(left, 0, right - left, this.canvas.height);
    this.context.clip();
    this.left = left;
    this.right = right;
    paint();
    this.context.restore();
  },
  drawBefore(entry) {
    if (entry.bitmap) this.drawImage(entry.bitmap);
    if (entry.job?.input.view) this.drawTiles(layerOf(entry, "original"));
  },
  drawAfter(entry, key) {
    this.drawBefore(entry); // until the tiles are there
    const result = entry.job.results[key], preview = entry.previews?.[key];
    if (preview) this.drawImage(preview.image);
    if (result.view) this.drawTiles(layerOf(entry, key));
    if (this.overlay && result.has_overlay) {
      const map = image(`/api/jobs/${entry.job.id}/${key}-overlay.png`);
      if (map) this.drawImage(map);
    }
  },
  drawImage(source) {
    const { context, scale, x, y, size } = this;
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(source, x, y, size[0] * scale, size[1] * scale);
  },
  drawTiles(layer) { // the coarsest, which is one tile, until those of the fitting size are there
    const { width, levels } = layer.view, each = this.scale * this.size[0] / width; // device pixels per layer pixel
    const wanted = Math.min(levels - 1, Math.max(0, Math.floor(Math.log2(1 / each))));
    this.drawLevel(layer, levels - 1, each);
    if (wanted < levels - 1) this.drawLevel(layer, wanted, each);
  },
  drawLevel(layer, level, each) {
    const { context, canvas } = this, { width, height, tile: side } = layer.view, span = side * 2 ** level;
    context.imageSmoothingEnabled = this.scale / this.factor < 8; // far beyond full size, pixels are to be seen as such
    context.imageSmoothingQuality = "high";
    const first = (place, from) => Math.max(0, Math.floor((from - place) / each / span));
    const last = (place, until, length) => Math.min(Math.ceil(length / span) - 1, Math.floor((until - place) / each / span));
    for (let row = first(this.y, 0); row <= last(this.y, canvas.height, height); row++) {
      for (let column = first(this.x, this.left); column <= last(this.x, this.right, width); column++) {
        const source = tile(layer, level, column, row);
        if (!source) continue;
        const at = (place, index, length) => Math.round(place + Math.min(index * span, length) * each);
        const [left, top] = [at(this.x, column, width), at(this.y, row, height)];
        context.drawImage(source, left, top, at(this.x, column + 1, width) - left, at(this.y, row + 1, height) - top);
      }
    }
  },
};
const percentText = (share) => (share < 0.1 ? `${(share * 100).toFixed(1)} %` : `${Math.round(share * 100)} %`);

// ---- hands on it ----------------------------------------------------------------------------------------------------

const pointers = new Map();
let dragging = null; // "line" or "picture"
let start = null; // where a single finger went down and still is

const place = (event) => {
  const box = $("stage").getBoundingClientRect(), ratio = view.canvas.width / box.width;
  return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
};
const pair = () => {
  const [[x1, y1], [x2, y2]] = [...pointers.values()];
  return { x: (x1 + x2) / 2, y: (y1 + y2) / 2, apart: Math.hypot(x1 - x2, y1 - y2) };
};

$("stage").addEventListener("pointerdown", (event) => {
  if (event.target.closest(".card, .legend") || event.button) return;
  $("stage").setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, place(event));
  start = pointers.size === 1 ? place(event) : null;
  const onLine = Boolean(event.target.closest(".line"));
  // A finger on a picture that fits has nothing to move but the line; two fingers move the picture.
  const aims = onLine || (view.fitted && event.pointerType === "touch" && shownKey(current));
  dragging = pointers.size === 1 && aims ? "line" : "picture";
  (dragging === "line" ? $("line") : $("stage")).focus({ preventScroll: true });
  event.preventDefault();
});
$("stage").addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const now = place(event);
  if (start && Math.hypot(now[0] - start[0], now[1] - start[1]) > 12) start = null;
  if (pointers.size === 2) {
    const old = pair();
    pointers.set(event.pointerId, now);
    const fresh = pair();
    view.move(fresh.x - old.x, fresh.y - old.y);
    if (old.apart) view.zoomTo(view.scale * fresh.apart / old.apart, fresh.x, fresh.y);
    return;
  }
  pointers.set(event.pointerId, now);
  if (dragging === "line") view.setLine(now[0] / view.canvas.width);
  else view.move(now[0] - before[0], now[1] - before[1]);
});
for (const kind of ["pointerup", "pointercancel"]) {
  $("stage").addEventListener(kind, (event) => pointers.delete(event.pointerId));
}
// The fingers here are this page's: the browser would take a fast one for a fling, and the next tap for its end.
$("stage").addEventListener("touchstart", (event) => {
  if (!event.target.closest(".card, .legend")) event.preventDefault();
}, { passive: false });
let tapped = 0;
$("stage").addEventListener("pointerup", (event) => { // two taps, as two clicks
  if (event.pointerType !== "touch" || !start || event.target.closest(".card, .legend")) return;
  if (event.timeStamp - tapped < 300) toggleFull(event);
  tapped = event.timeStamp;
});
$("stage").addEventListener("dblclick", (event) => { if (!event.target.closest(".card, .legend, .line")) toggleFull(event); });
const toggleFull = (event) => (view.fitted ? view.zoomTo(view.factor > view.fitScale ? view.factor : 2 * view.fitScale, ...place(event)) : view.fit());
$("stage").addEventListener("wheel", (event) => {
  if (event.target.closest(".card")) return;
  event.preventDefault();
  view.zoomTo(view.scale * 2 ** (-event.deltaY * (event.deltaMode ? 30 : 1) / 240), ...place(event));
}, { passive: false });
$("stage").addEventListener("keydown", (event) => {
  if (event.target.closest(".card")) return;
  const onLine = event.target === $("line"), step = event.shiftKey ? 0.1 : 0.02;
  const moves = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const keys = { "+": () => view.zoomTo(view.scale * 1.5), "=": () => view.zoomTo(view.scale * 1.5), "-": () => view.zoomTo(view.scale / 1.5),
    0: () => view.fit(), 1: () => view.full() };
  const lines = { ArrowLeft: view.line - step, ArrowDown: view.line - step, ArrowRight: view.line + step, ArrowUp: view.line + step,
    PageDown: view.line - 0.1, PageUp: view.line + 0.1, Home: 0, End: 1 };
  if (event.key === " ") { view.held = true; update(); } // as long as it is down: the photograph alone
  else if (onLine && event.key in lines) view.setLine(lines[event.key]);
  else if (event.key in keys && !event.ctrlKey && !event.metaKey) keys[event.key]();
  else if (event.key in moves) view.move(...moves[event.key].map((way) => way * view.canvas.width / 12));
  else return;
  event.preventDefault();
});
$("stage").addEventListener("keyup", (event) => { if (event.key === " ") { view.held = false; update(); } });
$("stage").addEventListener("blur", () => { view.held = false; update(); }, true);
new ResizeObserver(() => view.resize()).observe($("stage"));

$("in").onclick = () => view.zoomTo(view.scale * 1.5);
$("out").onclick = () => view.zoomTo(view.scale / 1.5);
$("fit").onclick = () => view.fit();
$("percent").onclick = () => (Math.abs(view.scale / view.factor - 1) < 0.001 ? view.fit() : view.full());
$("overlay").onclick = () => { view.overlay = !view.overlay; render(); };
$("stop").onclick = () => stop(current);
$("format").onchange = render;
$("chooser-fast").onchange = render;
$("chooser").onsubmit = (event) => {
  event.preventDefault();
  const factor = Number(new FormData(event.target).get("chosen") ?? current.settings.scale), fast = $("chooser-fast").checked;
  for (const entry of entries.filter((one) => one.state === "choosing")) { // one answer for all that came together
    const rows = ((fast && entry.quick) || entry.plan).filter((row) => row.fits);
    const fitting = rows.filter((row) => row.factor <= factor).at(-1) ?? rows[0];
    entry.settings = { ...entry.settings, scale: fitting.factor, ...(fast ? quickly() : {}) };
    entry.state = "queued";
  }
  sendNext();
  render();
  $("stage").focus();
};

// ---- options --------------------------------------------------------------------------------------------------------

const settings = $("settings");
const quickly = () => ({ fast: "true", confidence: "false", fidelity: 1, temperature: 0, cfg: 0 });

// The form as fields of the API: what differs from the defaults.
function collect() {
  const fields = { view: "true", confidence: "true" };
  for (const input of settings.elements) {
    if (!input.name || input.disabled || (input.type === "checkbox" || input.type === "radio" ? !input.checked : input.value === input.defaultValue)) continue;
    if (input.tagName === "SELECT" && input.selectedOptions[0].defaultSelected) continue;
    if (input.value !== "") fields[input.name] = input.value;
  }
  if (fields.other) fields.scale = fields.other;
  delete fields.other;
  if (fields.fast) Object.assign(fields, quickly());
  return fields;
}

function renderSettings() {
  const fast = settings.elements.fast.checked, draws = Number(settings.elements.temperature.value) > 0;
  for (const row of settings.querySelectorAll(".needs-codes")) {
    row.querySelector("input").disabled = fast || (row.classList.contains("needs-draws") && !draws);
  }
  for (const output of settings.querySelectorAll("output")) output.value = `${Math.round(output.closest("label").querySelector("input").value * 100)} %`;
}

// The next visit begins with the options of this one.
function recallSettings() {
  const kept = JSON.parse(localStorage.getItem("settings") ?? "{}");
  for (const input of settings.elements) {
    if (!(input.name in kept)) continue;
    if (input.type === "radio" || input.type === "checkbox") input.checked = kept[input.name] === input.value;
    else input.value = kept[input.name];
  }
  if (!settings.elements.scale.value) settings.elements.scale.value = LARGEST;
  renderSettings();
}
const keepSettings = () => localStorage.setItem("settings", JSON.stringify(Object.fromEntries(new FormData(settings))));

function toggleOptions(show) {
  $("options").hidden = !show;
  document.body.classList.toggle("with-options", show);
  $("open-options").setAttribute("aria-expanded", String(show));
  if (show) $("close-options").focus(); else $("open-options").focus();
}

$("scale").append(...server.factors.map((factor) => el("label", {},
  el("input", { type: "radio", name: "scale", value: factor, checked: factor === LARGEST, defaultChecked: factor === LARGEST }), el("span", { textContent: `x${factor}` }))));
$("denoise-row").hidden = !server.has_denoise;
$("fast-row").hidden = !server.has_fast;
settings.addEventListener("input", () => { renderSettings(); keepSettings(); });
$("defaults").onclick = () => { settings.reset(); localStorage.removeItem("settings"); renderSettings(); };
settings.onsubmit = async (event) => {
  event.preventDefault();
  const entry = current;
  if (window.innerWidth < 721) toggleOptions(false);
  if (entry.job) fetch(`/api/jobs/${entry.job.id}`, { method: "DELETE" });
  Object.assign(entry, { state: "opening", job: null, previews: null, shown: null, settings: null, share: 0 });
  await enqueue(entry);
};
$("open-options").onclick = () => toggleOptions($("options").hidden);
$("close-options").onclick = () => toggleOptions(false);
$("options").addEventListener("keydown", (event) => { if (event.key === "Escape") toggleOptions(false); });
recallSettings();

// ---- ways in --------------------------------------------------------------------------------------------------------

$("files").onchange = (event) => { add(event.target.files); event.target.value = ""; };
$("add").onclick = () => $("files").click();
$("home").onclick = () => sessionStorage.removeItem("jobs"); // a fresh start
document.addEventListener("paste", (event) => { if (event.clipboardData?.files.length) add(event.clipboardData.files); });
let depth = 0;
document.addEventListener("dragenter", (event) => { if (event.dataTransfer?.types.includes("Files")) { depth++; $("drop").hidden = false; } });
document.addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); $("drop").hidden = depth === 0; });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  $("drop").hidden = true;
  if (event.dataTransfer) add(event.dataTransfer.files);
});
$("examples").append(...server.examples.map((address) => {
  const name = address.split("/").at(-1), button = el("button", { type: "button" });
  button.append(el("img", { src: address, alt: `Example: ${name.replace(/\.\w+$/, "")}` }));
  button.onclick = async () => {
    const data = await (await fetch(address)).blob();
    add([new File([data], name, { type: data.type })]);
  };
  return el("li", {}, button);
}));
$("limits").textContent = `Photographs stay on this server and go after ${server.limits.keep_seconds === 3600 ? "an hour" : duration(server.limits.keep_seconds)}. Up to ${Math.floor(server.limits.pixels / 1e6)} megapixels and ${megabytes(server.limits.upload_bytes)}.`;
if (server.map === "expected error") {
  $("legend-note").textContent = "How far off the result may be. Do not read faces, text or numbers off it, colored or not.";
} else {
  $("overlay").textContent = "Where it guessed";
  $("legend-title").textContent = "Where it guessed";
  document.querySelector(".ends").replaceChildren(el("span", { textContent: "sure" }), el("span", { textContent: "guessed" }));
  $("legend-note").textContent = "How sure the model was of its details. Do not read faces, text or numbers off it, colored or not.";
}
renderFormats(["png", "jpg", "webp"]);
recall();
document.body.dataset.ready = "true";
