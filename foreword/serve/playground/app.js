// The playground: pick forewords, type once, read their answers side by side. No library, nothing from elsewhere.
const $ = (id) => document.getElementById(id);
const state = { models: [], picked: new Set(), key: sessionStorage.getItem("foreword-key") || "", run: null, hues: new Map(), speeds: [], last: null };
const MOST_SHOWN = 200;
const GOLDEN = 137.508; // degrees: neighbours in the list get colours far apart

const hue = (name) => {
  if (!state.hues.has(name)) state.hues.set(name, (28 + state.hues.size * GOLDEN) % 360);
  return state.hues.get(name).toFixed(1);
};
const bytes = (n) => (n >= 1 << 30 ? `${(n / 2 ** 30).toFixed(1)} GiB` : n >= 1 << 20 ? `${(n / 2 ** 20).toFixed(1)} MiB` : `${Math.round(n / 1024)} KiB`);
const element = (tag, kind, text) => {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
};

async function ask(path, body, signal) {
  const headers = state.key ? { Authorization: `Bearer ${state.key}` } : {};
  const options = body ? { method: "POST", body: JSON.stringify(body), headers: { ...headers, "Content-Type": "application/json" }, signal } : { headers, signal };
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  const fault = new Error(await answer.json().then((b) => b.error.message, () => `the server answers ${answer.status}`));
  fault.status = answer.status;
  throw fault;
}

// ---- forewords to pick ----
async function loadModels() {
  try {
    const listed = (await (await ask("v1/models")).json()).data;
    state.models = listed;
    $("backbone").textContent = listed[0].id;
    $("keybox").hidden = true;
    listed.forEach((model) => hue(model.id));
    if (!state.picked.size) listed.slice(0, 5).filter((m) => m.owned_by !== "backbone" || listed.length === 1).forEach((m) => state.picked.add(m.id));
    drawModels();
  } catch (fault) {
    if (fault.status === 401) askForKey();
    else complain(fault.message);
  }
}

function askForKey() {
  $("keybox").hidden = false;
  say("bad", "needs a key");
  $("key").focus();
}

function drawModels() {
  const words = $("filter").value.trim().toLowerCase();
  const fitting = state.models.filter((m) => m.id.toLowerCase().includes(words));
  $("forewords").replaceChildren(...fitting.slice(0, MOST_SHOWN).map(modelRow));
  const hidden = fitting.length - MOST_SHOWN;
  $("more").textContent = !fitting.length ? "nothing fits the filter" : hidden > 0 ? `and ${hidden.toLocaleString()} more; filter to see them` : "";
  $("picked").textContent = `${state.picked.size} of ${state.models.length.toLocaleString()}`;
  if (!state.run) $("go").disabled = !state.picked.size;
}

function modelRow(model) {
  const row = element("li", "hued"), label = element("label"), box = element("input");
  row.style.setProperty("--hue", hue(model.id));
  box.type = "checkbox";
  box.checked = state.picked.has(model.id);
  box.addEventListener("change", () => {
    box.checked ? state.picked.add(model.id) : state.picked.delete(model.id);
    $("picked").textContent = `${state.picked.size} of ${state.models.length.toLocaleString()}`;
    if (!state.run) $("go").disabled = !state.picked.size;
  });
  const name = element("span", "name", model.id);
  name.title = model.id;
  label.append(box, element("span", "dot"), name);
  if (model.owned_by === "backbone") label.append(element("span", "tag", "no foreword"));
  row.append(label);
  return row;
}

// ---- one text, many answers ----
async function run() {
  if (state.run) return state.run.abort();
  const models = state.models.map((m) => m.id).filter((id) => state.picked.has(id));
  const prompt = $("prompt").value;
  complain("");
  if (!prompt) return $("prompt").focus();
  const number = (id, otherwise) => ($(id).value === "" ? otherwise : Number($(id).value));
  const body = { models, prompt, max_tokens: number("max_tokens", 48), temperature: number("temperature", 0), seed: number("seed", null) };
  state.run = new AbortController();
  $("go").textContent = "Stop";
  $("go").classList.add("stop");
  const cards = new Map(models.map((name) => [name, card(name)]));
  $("answers").replaceChildren(...[...cards.values()].map((c) => c.box));
  $("empty").hidden = true;
  try {
    const answer = await ask("v1/compare", body, state.run.signal);
    for await (const piece of events(answer.body)) {
      if (piece.error && !piece.model) throw new Error(piece.error.message);
      cards.get(piece.model).add(piece);
    }
  } catch (fault) {
    if (fault.status === 401) askForKey();
    if (fault.name !== "AbortError") complain(fault.message);
    if (fault.status) { $("answers").replaceChildren(); $("empty").hidden = false; }
  }
  cards.forEach((c) => c.close());
  state.run = null;
  $("go").textContent = "Run";
  $("go").classList.remove("stop");
  drawModels();
}

function card(name) {
  const box = element("article", "answer hued busy"), text = element("div", "text"), foot = element("footer");
  const count = element("span", "", ""), speed = element("span", "", ""), end = element("span", "end", "");
  box.style.setProperty("--hue", hue(name));
  box.dataset.model = name;
  text.setAttribute("aria-live", "off");
  foot.append(count, speed, end);
  const head = element("h3", "", name);
  head.title = name;
  box.append(head, text, foot);
  let tokens = 0, begun = 0, open = true;
  return {
    box,
    add(piece) {
      const near = text.scrollHeight - text.scrollTop - text.clientHeight < 24;
      if (piece.tokens && !begun) begun = performance.now();
      tokens += piece.tokens;
      text.append(piece.error || piece.text);
      if (near) text.scrollTop = text.scrollHeight;
      count.textContent = `${tokens} token${tokens === 1 ? "" : "s"}`;
      const seconds = (performance.now() - begun) / 1000;
      if (tokens > 2 && seconds > 0.05) speed.textContent = `${((tokens - 1) / seconds).toFixed(0)}/s`;
      if (piece.error) box.classList.add("failed");
      if (piece.finish_reason) this.close(piece.finish_reason === "length" ? "length reached" : piece.finish_reason === "stop" ? "complete" : piece.finish_reason);
    },
    close(reason = "stopped") {
      if (!open) return;
      open = false;
      end.textContent = reason;
      box.classList.replace("busy", "done");
    },
  };
}

async function* events(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: {")) yield JSON.parse(part.slice(6));
  }
}

const complain = (text) => { $("fault").textContent = text; $("fault").hidden = !text; };

// ---- the engine, live ----
function say(kind, text) {
  $("state").className = `state ${kind}`;
  $("state").lastElementChild.textContent = text;
}

async function watch() {
  if (!document.hidden && $("keybox").hidden) {
    try {
      show(await (await ask("v1/status")).json());
    } catch (fault) {
      if (fault.status === 401) askForKey();
      else say("bad", "not reachable");
    }
  }
  setTimeout(watch, state.run ? 250 : 1000);
}

function show(now) {
  if (!state.models.length) return; // colours follow the list's order
  say("ok", now.state);
  const rows = Object.entries(now.rows_by_foreword), mine = rows.reduce((sum, [, n]) => sum + n, 0);
  const running = now.engine ? now.engine.running_rows : mine;
  $("running").textContent = running;
  $("slots").textContent = `of ${now.slots} rows`;
  const waiting = now.engine ? now.engine.queued_rows : Math.max(0, now.waiting_or_running - mine);
  $("waiting").textContent = waiting ? `${waiting} waiting` : "";
  drawCells(rows, running - mine, now.slots);
  drawPool(now.pool);
  drawSpeed(now.engine);
}

function drawCells(rows, others, slots) {
  const shown = Math.min(slots, 40), cells = [];
  for (const [name, n] of rows) for (let i = 0; i < n && cells.length < shown; i++) cells.push(cell("hued", name));
  for (let i = 0; i < others && cells.length < shown; i++) cells.push(cell("other"));
  while (cells.length < shown) cells.push(cell(""));
  $("cells").replaceChildren(...cells);
}

function cell(kind, name) {
  const made = element("i", kind);
  if (name) { made.style.setProperty("--hue", hue(name)); made.title = name; }
  return made;
}

function drawPool(pool) {
  const total = pool.budget_bytes || pool.resident.reduce((sum, r) => sum + r.bytes, 0) || 1;
  const names = Array.isArray(pool.resident) ? pool.resident : [];
  const used = pool.resident_bytes ?? names.reduce((sum, r) => sum + r.bytes, 0);
  $("resident").textContent = pool.count ?? names.length;
  $("poolbytes").textContent = pool.budget_bytes ? `resident · ${bytes(used)} of ${bytes(total)}` : `resident · ${bytes(used)}`;
  $("pool").replaceChildren(...names.slice(0, 64).map((r) => {
    const part = cell(`hued${r.pinned ? " pinned" : ""}`, r.name);
    part.style.flex = `0 0 max(8px, ${(100 * r.bytes) / total}%)`;
    part.title = `${r.name}: ${bytes(r.bytes)}${r.pinned ? ", pinned" : ""}`;
    return part;
  }));
}

function drawSpeed(engine) {
  if (!engine) { $("speed").textContent = "–"; return; }
  const at = performance.now(), made = engine.made_tokens;
  const speed = state.last && at > state.last.at ? Math.max(0, ((made - state.last.made) * 1000) / (at - state.last.at)) : 0;
  state.last = { at, made };
  state.speeds.push(speed);
  if (state.speeds.length > 60) state.speeds.shift();
  $("speed").textContent = Math.round(speed).toLocaleString();
  const top = Math.max(...state.speeds, 1), n = state.speeds.length;
  const line = state.speeds.map((s, i) => `${(120 * (60 - n + i)) / 59},${(30 - (28 * s) / top).toFixed(1)}`).join("L");
  $("spark").querySelector(".line").setAttribute("d", `M${line}`);
  $("spark").querySelector(".area").setAttribute("d", `M${(120 * (60 - n)) / 59},32L${line}L120,32Z`);
}

// ---- hands ----
$("ask").addEventListener("submit", (e) => { e.preventDefault(); run(); });
$("filter").addEventListener("input", drawModels);
$("filter").addEventListener("keydown", (e) => {
  const first = $("forewords").querySelector("input");
  if ((e.key === "Enter" || e.key === "ArrowDown") && first) { e.preventDefault(); first.focus(); }
});
$("forewords").addEventListener("keydown", (e) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[e.key];
  if (!step) return;
  e.preventDefault();
  const boxes = [...$("forewords").querySelectorAll("input")], next = boxes[boxes.indexOf(e.target) + step];
  (next || (step < 0 ? $("filter") : e.target)).focus();
});
$("keybox").addEventListener("submit", (e) => {
  e.preventDefault();
  state.key = $("key").value.trim();
  sessionStorage.setItem("foreword-key", state.key);
  loadModels();
});
document.addEventListener("keydown", (e) => {
  const typing = /^(INPUT|TEXTAREA)$/.test(e.target.tagName) && e.target.type !== "checkbox";
  if (e.key === "/" && !typing) { e.preventDefault(); $("filter").focus(); }
  if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { e.preventDefault(); run(); }
  if (e.key === "Escape" && state.run) state.run.abort();
});
loadModels();
watch();
