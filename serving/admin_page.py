"""The admin page: one self-contained HTML text, without a byte from anywhere else."""

import base64
import functools
import hashlib

__all__ = ["content_security_policy", "html"]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --good: #17803d; --bad: #c0322b; --wait: #a36a00; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 64rem; padding: 1.5rem; }
h1 { font-size: 1.3rem; margin: 0 0 1rem; } h2 { font-size: 1.1rem; margin: 0; }
section { border: 1px solid var(--line); border-radius: .6rem; margin: 0 0 1.2rem; padding: 1rem 1.2rem; }
table { border-collapse: collapse; margin-top: .6rem; width: 100%; }
th, td { border-top: 1px solid var(--line); padding: .35rem .6rem .35rem 0; text-align: left; vertical-align: top; }
th { border: 0; font-size: .8rem; font-weight: 600; opacity: .7; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.path, .facts { font-size: .85rem; opacity: .75; overflow-wrap: anywhere; }
.state { font-weight: 600; } .AVAILABLE { color: var(--good); } .END { opacity: .6; }
.LOADING, .START, .UNLOADING { color: var(--wait); } .error { color: var(--bad); overflow-wrap: anywhere; }
.label { background: var(--soft); border-radius: 1rem; font-size: .85rem; margin-right: .3rem; padding: .05rem .6rem; }
.champion { background: var(--good); color: #fff; } [hidden] { display: none !important; }
.drop { align-items: center; border: 2px dashed var(--line); border-radius: .6rem; cursor: pointer; display: flex;
  gap: 1rem; justify-content: center; margin-top: .9rem; min-height: 4.5rem; padding: .6rem; }
.drop.over, .drop:focus-within { border-color: currentColor; }
.drop img { max-height: 6rem; max-width: 9rem; } .drop input { height: 1px; opacity: 0; width: 1px; }
pre { background: var(--soft); border-radius: .4rem; margin: .6rem 0 0; max-height: 10rem;
  overflow: auto; padding: .6rem; white-space: pre-wrap; }
td.wide { width: 60%; }
.bar { background: var(--soft); height: .5rem; } .bar div { background: var(--good); height: 100%; }
#note { color: var(--bad); min-height: 1.5em; } footer { font-size: .85rem; opacity: .75; }
"""

_SCRIPT = """
'use strict';
const HISTORY_MS = 30000;
const history = [];
const results = new Map();
const make = (tag, text, className) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
};
const row = (tag, texts) => {
  const node = make('tr');
  texts.forEach(([text, name]) => node.append(make(tag, text, name)));
  return node;
};
function quantile(counts, limits, share) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  let seen = 0;
  for (let index = 0; index < counts.length; index++) {
    if (seen + counts[index] >= share * total) {
      const low = index ? limits[index - 1] : 0, high = limits[Math.min(index, limits.length - 1)];
      return (low + (high - low) * (share * total - seen) / Math.max(counts[index], 1)) / 1000;
    }
    seen += counts[index];
  }
  return NaN;
}
function recent(now, entry) {
  const key = [entry.model, entry.api, entry.entrypoint].join('\\n');
  const old = history[0].latencies.get(key) || entry.counts.map(() => 0);
  return { counts: entry.counts.map((count, index) => count - old[index]), seconds: (now - history[0].time) / 1000 };
}
function latencyTable(name, overview, now) {
  const table = make('table');
  if (!overview.latencies.some(each => each.model === name)) return make('div', 'no request yet', 'facts');
  table.append(row('th', [['requests'], ['all', 'number'], ['per second', 'number'], ['p50 ms', 'number'],
    ['p99 ms', 'number']]));
  for (const entry of overview.latencies.filter(each => each.model === name)) {
    const { counts, seconds } = recent(now, entry);
    const count = counts.reduce((sum, each) => sum + each, 0);
    const number = value => Number.isFinite(value) ? value.toFixed(value < 10 ? 2 : 0) : '–';
    table.append(row('td', [
      [`${entry.api || 'status'} over ${entry.entrypoint}`],
      [String(entry.counts.reduce((sum, each) => sum + each, 0)), 'number'],
      [seconds > 0 ? number(count / seconds) : '–', 'number'],
      [count ? number(quantile(counts, entry.limits_us, 0.5)) : '–', 'number'],
      [count ? number(quantile(counts, entry.limits_us, 0.99)) : '–', 'number']]));
  }
  return table;
}
function versionTable(model) {
  const table = make('table');
  table.append(row('th', [['version'], ['state'], ['labels'], ['where it came from']]));
  for (const version of model.versions) {
    const line = make('tr');
    line.append(make('td', version.version), make('td', version.state, 'state ' + version.state));
    const labels = make('td');
    version.labels.forEach(label => labels.append(
      make('span', label === 'champion' ? '★ champion' : label, label === 'champion' ? 'label champion' : 'label')));
    const facts = make('td', undefined, 'facts');
    facts.append(make('div', Object.entries(version.lineage).map(([name, text]) => `${name} ${text}`).join(' · ')));
    if (Object.keys(version.lineage).length) {
      const link = make('a', 'lineage');
      link.href = '/manifest.json?model=' + encodeURIComponent(model.name) + '&version=' + version.version;
      facts.append(link);
    }
    if (version.error) facts.append(make('div', version.error, 'error'));
    line.append(labels, facts);
    table.append(line);
  }
  return table;
}
function bars(answer) {
  const outputs = answer.outputs;
  const list = outputs && outputs.probabilities && outputs.probabilities[0];
  if (!Array.isArray(list)) return make('div');
  const box = make('table');
  const label = outputs.label ? String(outputs.label[0]) : '';
  list.map((share, index) => [share, index]).sort((a, b) => b[0] - a[0]).slice(0, 5).forEach(([share, index], rank) => {
    const line = make('tr'), cell = make('td', undefined, 'wide'), bar = make('div', undefined, 'bar');
    const inner = make('div');
    inner.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
    bar.append(inner); cell.append(bar);
    line.append(make('td', rank === 0 && label ? `${label} (class ${index})` : `class ${index}`),
      make('td', share.toFixed(4), 'number'), cell);
    box.append(line);
  });
  return box;
}
function showResult(name) {
  const shown = results.get(name), box = document.getElementById('result:' + name);
  if (!shown || !box) return;
  box.replaceChildren();
  if (shown.answer) box.append(bars(shown.answer));
  box.append(make('pre', shown.text));
}
async function predict(name, file, picture) {
  picture.src = URL.createObjectURL(file);
  picture.hidden = false;
  const headers = { 'X-Isthmus-Admin': '1' };
  const token = document.getElementById('token').value;
  if (token) headers.Authorization = 'Bearer ' + token;
  try {
    const started = performance.now();
    const response = await fetch('/predict?model=' + encodeURIComponent(name), { method: 'POST', body: file, headers });
    const text = await response.text();
    const ms = (performance.now() - started).toFixed(1);
    let answer = null;
    try { answer = JSON.parse(text); } catch (error) { answer = null; }
    const said = answer ? JSON.stringify(answer) : text;
    results.set(name, { answer: response.ok ? answer : null, text: `${file.name} · ${ms} ms\\n${said}` });
  } catch (error) {
    results.set(name, { answer: null, text: String(error) });
  }
  showResult(name);
}
function dropZone(name) {
  const zone = make('label', undefined, 'drop'), input = make('input'), picture = make('img');
  picture.hidden = true; picture.alt = 'the image that was dropped';
  input.type = 'file'; input.accept = 'image/*'; input.dataset.model = name;
  input.addEventListener('change', () => { if (input.files[0]) predict(name, input.files[0], picture); });
  zone.append(picture, make('span', 'drop an image here, or click, to see the prediction'), input);
  zone.addEventListener('dragover', event => { event.preventDefault(); zone.classList.add('over'); });
  zone.addEventListener('dragleave', () => zone.classList.remove('over'));
  zone.addEventListener('drop', event => {
    event.preventDefault(); zone.classList.remove('over');
    if (event.dataTransfer.files[0]) predict(name, event.dataTransfer.files[0], picture);
  });
  return zone;
}
function section(name) {
  const known = document.getElementById('model:' + name);
  if (known) return known;
  const box = make('section');
  box.id = 'model:' + name;
  const live = make('div', undefined, 'live'), result = make('div'), zone = dropZone(name);
  zone.hidden = true;
  result.id = 'result:' + name;
  box.append(make('h2', name), live, zone, result);
  document.getElementById('models').append(box);
  return box;
}
async function refresh() {
  const note = document.getElementById('note');
  try {
    const overview = await (await fetch('/status.json')).json();
    const now = Date.now();
    const latencies = new Map(overview.latencies.map(
      entry => [[entry.model, entry.api, entry.entrypoint].join('\\n'), entry.counts]));
    history.push({ time: now, latencies });
    while (history.length > 1 && now - history[1].time >= HISTORY_MS) history.shift();
    for (const model of overview.models) {
      const box = section(model.name);
      box.querySelector('.live').replaceChildren(
        make('div', `${model.base_path} · ${model.policy} versions`, 'path'),
        versionTable(model), latencyTable(model.name, overview, now));
      box.querySelector('.drop').hidden = !model.takes_images;
    }
    const names = new Set(overview.models.map(model => 'model:' + model.name));
    document.querySelectorAll('#models > section').forEach(box => { if (!names.has(box.id)) box.remove(); });
    note.textContent = overview.models.length ? '' : 'no model is configured yet';
  } catch (error) {
    note.textContent = 'the server does not answer: ' + error;
  }
  setTimeout(refresh, 1000);
}
refresh();
"""


@functools.cache
def html() -> bytes:
    """The page."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>isthmus serve</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body><h1>isthmus serve</h1><div id=note></div><div id=models></div>"
        "<footer>latencies of the last 30 s · <a href=/metrics>metrics</a> · <a href=/readyz>readiness</a> · "
        "<label>API token, if the server wants one: <input id=token type=password autocomplete=off></label>"
        f"</footer><script>{_SCRIPT}</script></body></html>"
    ).encode()


@functools.cache
def content_security_policy() -> bytes:
    """What the page may load and run: itself, and pictures that were dropped on it."""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ).encode()
