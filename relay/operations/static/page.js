// The status page: it shows the server-sent events of /events, each of which has the whole view of this page.
// Everything goes into the page as text, never as markup.
"use strict";

const byId = (id) => document.getElementById(id);
const SPAN = 120; // seconds of the graphs
const GAP = 15; // seconds between two points, above which the line is broken
const TYPING = 250; // milliseconds after the last key until the filter is applied
const RETRY = 3000; // milliseconds after a failure that the browser itself does not retry
const ROWS = 25; // of one page of a table, as the server has it

const DEFAULTS = { filter: "", tunnels: "problem", tunnels_from: 0, connections: "age", connections_from: 0 };
const view = { ...DEFAULTS };
let source = null;
let again = 0; // the timer of the next attempt
let typing = 0;
let paused = false;
let ended = false; // the server does not want this page any more
let last = null; // the last event

// -- text ------------------------------------------------------------------------------------------------------------

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function size(count) {
  if (count < 1000) return `${Math.round(count)} B`;
  for (const unit of ["kB", "MB", "GB", "TB"]) {
    count /= 1000;
    if (count < 999.5 || unit === "TB") return `${count < 99.95 ? count.toFixed(1) : Math.round(count)} ${unit}`;
  }
}

function duration(seconds) {
  if (seconds < 0) seconds = 0;
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 && seconds > 0 ? 1 : 0)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h` : `${Math.floor(hours / 24)} d`;
}

const number = (count) => count.toLocaleString("en");
const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const rate = (value) => (value === null ? "–" : value < 0.5 ? "0" : size(value));
const clock = (time) => new Date(time * 1000).toLocaleTimeString("en-GB");
const moment = (time) => new Date(time * 1000).toLocaleString("en-GB");

// -- rows ------------------------------------------------------------------------------------------------------------

function element(name, className, parent) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (parent) parent.append(made);
  return made;
}

// A cell with a text of the network: isolated, because it may be in a script from right to left.
function foreign(node, text) {
  if (!node.firstChild) element("bdi", "", node);
  put(node.firstChild, text);
  if (node.title !== text) node.title = text;
}

function state(node, word, kind) {
  put(node, word);
  const name = `state ${kind}`;
  if (node.className !== name) node.className = name;
}

function show(node, text) {
  foreign(node, text);
  node.hidden = !text;
}

// A figure; those that are nothing stand back.
function figure(cell, value, format) {
  put(cell, value === null ? "–" : format(value));
  cell.classList.toggle("zero", !value || value < 0.5);
}

function figures(cells, row) {
  figure(cells[0], row.received, size);
  figure(cells[1], row.sent, size);
  figure(cells[2], row.received_rate, rate);
  figure(cells[3], row.sent_rate, rate);
}

// A row that is used again and again: only what has changed is written.
class Row {
  constructor(table) {
    this.element = element("tr", "", table.body);
    this.cells = table.columns.map((column, index) => {
      const cell = element(index === table.header ? "th" : "td", column, this.element);
      if (index === table.header) cell.scope = "row";
      return cell;
    });
    this.parts = table.make(this.cells);
  }
}

class Table {
  constructor(name, describe) {
    this.section = byId(name);
    const element_ = this.section.querySelector("table");
    this.name = name;
    this.body = element_.tBodies[0];
    this.columns = Array.from(element_.tHead.rows[0].cells, (cell) => cell.className);
    this.header = this.columns.findIndex((column) => column.startsWith("main"));
    this.make = describe.make;
    this.fill = describe.fill;
    this.nothing = describe.nothing;
    this.rows = [];
    this.pager = this.section.querySelector(".pager");
    this.empty = element("tr", "empty", this.body);
    element("td", "", this.empty).colSpan = this.columns.length;
  }

  update(content, event) {
    while (this.rows.length < content.rows.length) this.rows.push(new Row(this));
    while (this.rows.length > content.rows.length) this.rows.pop().element.remove();
    content.rows.forEach((row, index) => this.fill(row, this.rows[index].cells, this.rows[index].parts, event));
    this.empty.hidden = content.rows.length > 0;
    put(this.empty.firstChild, content.total ? "No row matches the filter." : this.nothing);
    this.count(content);
  }

  count({ total, matching, from, rows }) {
    const part = rows.length < matching ? `${number(from + 1)}–${number(from + rows.length)} of ` : "";
    const range = `${part}${number(matching)}${matching === total ? "" : `, filtered from ${number(total)}`}`;
    put(this.section.querySelector(".count"), total ? range : "");
    if (!this.pager) return;
    this.pager.hidden = matching <= ROWS && from === 0;
    this.pager.children[0].disabled = from === 0;
    this.pager.children[1].disabled = from + rows.length >= matching;
    this.from = from;
  }
}

function under(cell, ...names) {
  return names.map((name) => element("span", name, cell));
}

function beside(cell) {
  cell.append(" ");
  return element("span", "dim", cell);
}

// A line for each of several targets.
function targets(box, row) {
  while (box.children.length < row.targets.length) {
    const line = element("span", "target", box);
    element("bdi", "", line);
    line.append(" ");
    element("span", "", line);
  }
  while (box.children.length > row.targets.length) box.lastChild.remove();
  row.targets.forEach((target, index) => {
    const [name, word] = box.children[index].children;
    put(name, target.target);
    const problem = target.problem ? `: ${target.problem}` : "";
    state(word, `${target.state}, ${number(target.active)} open${problem}`, TARGET_STATES[target.state] || "");
  });
  box.hidden = !row.targets.length;
}

// A name that filters all tables when it is chosen.
function pick(cell) {
  const button = element("button", "pick", cell);
  button.type = "button";
  button.addEventListener("click", () => filterBy(button.textContent));
  return button;
}

const TUNNEL_STATES = { listening: "good", paused: "warn", opening: "warn", waiting: "warn", draining: "warn" };
const CARRIER_STATES = { up: "good", connecting: "warn", "backing off": "bad", failed: "bad" };
const TARGET_STATES = { up: "good", down: "bad", probing: "warn", disabled: "warn" };
const LEVELS = { debug: "", info: "", warning: "warn", error: "bad", critical: "bad" };
const FINE = ["done", "closed"];

const route = (row) => [row.listen, row.via.length ? `${row.target} via ${row.via.join(", ")}` : row.target].join(" → ");
const warm = ({ ready, hits, misses }) =>
  `${counted(ready, "warm stream")} ready, ${number(hits)} of ${counted(hits + misses, "client")} got one`;
const flow = (row) =>
  row.received_rate + row.sent_rate < 1 ? "" : `${rate(row.received_rate)}/s in, ${rate(row.sent_rate)}/s out`;

const tables = {
  tunnels: new Table("tunnels", {
    nothing: "There is no tunnel.",
    make: (cells) => {
      const name = pick(cells[0]);
      const [labels_] = under(cells[0], "under");
      const classes = ["under narrow", "under phone", "under", "under narrow", "under narrow", "problem narrow"];
      const [route_, flow_, warm_, targets_, more, problem] = under(cells[0], ...classes);
      const word = element("span", "", cells[1]);
      const since = beside(cells[1]);
      const wide = element("span", "", cells[2]);
      const [wideTargets, wideMore, reason] = under(cells[2], "under", "under", "problem");
      const each = [[targets_, more], [wideTargets, wideMore]];
      return { name, labels: labels_, route: route_, flow: flow_, warm: warm_, targets: each, problem, word, since, wide, reason };
    },
    fill: (row, cells, parts, event) => {
      foreign(parts.name, row.name);
      show(parts.labels, row.labels.join(", "));
      foreign(parts.route, route(row));
      put(parts.flow, flow(row));
      show(parts.warm, row.warm ? warm(row.warm) : "");
      for (const [box, more] of parts.targets) {
        targets(box, row);
        show(more, row.more_targets ? `and ${counted(row.more_targets, "target")} more` : "");
      }
      const isUp = row.hops === "up" || row.hops === "published";
      const word = row.state !== "listening" ? row.state : !isUp ? row.hops : row.problem ? "problem" : row.state;
      const problem = row.problem === word ? "" : row.problem;
      show(parts.problem, problem);
      show(parts.reason, problem);
      const ready = row.state === "listening" && row.problem ? "bad" : TUNNEL_STATES[row.state] || "bad";
      state(parts.word, word, ready);
      put(parts.since, duration(event.time - row.since));
      parts.since.title = `since ${moment(row.since)}`;
      parts.since.hidden = !row.since;
      foreign(parts.wide, route(row));
      [row.active, row.accepted, row.failed].forEach((count, index) => figure(cells[3 + index], count, number));
      figures(cells.slice(6), row);
    },
  }),
  carriers: new Table("carriers", {
    nothing: "There is none.",
    make: (cells) => {
      const name = pick(cells[0]);
      const [worker, problem] = under(cells[0], "under", "problem");
      return { name, worker, problem, word: element("span", "", cells[1]) };
    },
    fill: (row, cells, parts, event) => {
      foreign(parts.name, row.name);
      const router = row.router ? `at ${row.router}` : "";
      const places = [row.number === null ? "" : `carrier ${row.number}`, router, row.worker === null ? "" : `worker ${row.worker}`];
      show(parts.worker, places.filter(Boolean).join(", "));
      show(parts.problem, row.error);
      state(parts.word, row.state, CARRIER_STATES[row.state] || "");
      put(cells[2], duration(event.time - row.since));
      cells[2].title = `since ${moment(row.since)}`;
      figure(cells[3], row.streams, number);
      figure(cells[4], row.losses, number);
      put(cells[5], row.rtt === null ? "–" : duration(row.rtt));
    },
  }),
  connections: new Table("connections", {
    nothing: "There is none.",
    make: (cells) => {
      const peer = element("span", "", cells[0]);
      const [where, flow_] = under(cells[0], "under narrow", "under phone");
      const word = element("span", "", cells[3]);
      return { peer, where, flow: flow_, word, warm: beside(cells[3]) };
    },
    fill: (row, cells, parts) => {
      foreign(parts.peer, row.peer || "a local client");
      foreign(parts.where, `${row.tunnel} → ${row.target || "not connected"}`);
      put(parts.flow, flow(row));
      foreign(cells[1], row.tunnel);
      foreign(cells[2], row.target);
      state(parts.word, row.state, row.state === "open" ? "good" : "warn");
      put(parts.warm, row.warm ? "warm" : "");
      put(cells[4], duration(row.age));
      figures(cells.slice(5), row);
    },
  }),
  ended: new Table("ended", {
    nothing: "None has ended yet.",
    make: (cells) => {
      const peer = element("span", "", cells[0]);
      const [where] = under(cells[0], "under narrow");
      const word = element("span", "", cells[3]);
      const by = beside(cells[3]);
      return { peer, where, word, by };
    },
    fill: (row, cells, parts, event) => {
      foreign(parts.peer, row.peer || "a local client");
      foreign(parts.where, `${row.tunnel} → ${row.target || "not connected"}`);
      foreign(cells[1], row.tunnel);
      foreign(cells[2], row.target);
      state(parts.word, row.reason, FINE.includes(row.reason) ? "" : "bad");
      put(parts.by, `by ${row.by}`);
      parts.by.hidden = !row.by;
      put(cells[4], duration(event.time - row.ended));
      cells[4].title = moment(row.ended);
      put(cells[5], duration(row.age));
      figure(cells[6], row.received, size);
      figure(cells[7], row.sent, size);
    },
  }),
  bans: new Table("bans", {
    nothing: "There is none.",
    make: (cells) => {
      const key = pick(cells[0]);
      const [tunnel] = under(cells[0], "under phone");
      return { key, tunnel };
    },
    fill: (row, cells, parts, event) => {
      foreign(parts.key, row.key);
      foreign(parts.tunnel, row.tunnel);
      foreign(cells[1], row.tunnel);
      foreign(cells[2], row.limit);
      put(cells[3], duration(row.until - event.time));
      cells[3].title = moment(row.until);
    },
  }),
  log: new Table("log", {
    nothing: "No line yet.",
    make: (cells) => {
      cells[2].classList.add("message");
      return { word: element("span", "", cells[1]) };
    },
    fill: (row, cells, parts) => {
      put(cells[0], clock(row.time));
      cells[0].title = moment(row.time);
      state(parts.word, row.level, LEVELS[row.level] || "");
      foreign(cells[2], row.message);
    },
  }),
};

// -- tiles -----------------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

class Tile {
  constructor(name, column, format) {
    this.tile = byId(`tile-${name}`);
    this.column = column; // of a point of the history
    this.format = format;
    this.graph = this.tile.querySelector("svg");
    [this.area, this.line] = ["area", "line"].map((kind) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", kind);
      this.graph.append(path);
      return path;
    });
  }

  // Show the figure of now, and the largest of the graph after another fact.
  update(event, now, fact) {
    put(this.tile.querySelector(".figure"), now);
    const values = event.history.map((point) => point[this.column]);
    const most = Math.max(...values, 0);
    const peak = values.length ? `peak ${this.format(most)}` : "";
    put(this.tile.querySelector(".more"), [fact, peak].filter(Boolean).join(" · "));
    this.graph.setAttribute("aria-label", `The last 2 minutes: now ${now}, ${peak || "no figures yet"}`);
    const top = most || 1;
    let line = "";
    let area = "";
    let before = null;
    for (const point of event.history) {
      const x = (120 - ((event.time - point[0]) / SPAN) * 120).toFixed(2);
      const y = (31 - (point[this.column] / top) * 28).toFixed(2);
      if (before === null || point[0] - before.time > GAP) {
        if (before !== null) area += `L${before.x} 32Z`;
        line += `M${x} ${y}`;
        area += `M${x} 32L${x} ${y}`;
      } else {
        line += `L${x} ${y}`;
        area += `L${x} ${y}`;
      }
      before = { x, time: point[0] };
    }
    if (before !== null) area += `L${before.x} 32Z`;
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", area);
  }
}

const perSecond = (value) => `${value < 9.95 ? value.toFixed(1) : Math.round(value)}/s`;
const tiles = {
  received: new Tile("received", 1, (value) => `${size(value)}/s`),
  sent: new Tile("sent", 2, (value) => `${size(value)}/s`),
  active: new Tile("active", 3, number),
  accepted: new Tile("accepted", 4, perSecond),
};

function updateTiles(event) {
  const point = event.history.at(-1);
  const fresh = point && point[0] === event.time;
  const now = (tile) => (fresh ? tile.format(point[tile.column]) : "–");
  const { totals } = event;
  tiles.received.update(event, now(tiles.received), `${size(totals.received)} in all`);
  tiles.sent.update(event, now(tiles.sent), `${size(totals.sent)} in all`);
  tiles.active.update(event, number(totals.active), "");
  tiles.accepted.update(event, now(tiles.accepted), `${number(totals.accepted)} in all`);
  const failed = Object.entries(totals.failed);
  const sum = failed.reduce((count, [, each]) => count + each, 0);
  put(byId("tile-failed").querySelector(".figure"), number(sum));
  const words = failed.slice(0, 4).map(([reason, count]) => `${reason} ${number(count)}`);
  if (failed.length > 4) words.push("…");
  put(byId("tile-failed").querySelector(".more"), `of ${number(totals.accepted)}${words.length ? `: ${words.join(", ")}` : ""}`);
}

// -- the whole page --------------------------------------------------------------------------------------------------

function update(event) {
  const { instance, totals } = event;
  const problems = totals.problems ? `, ${counted(totals.problems, "problem")}` : "";
  const [word, kind] = instance.draining
    ? ["Draining", "warn"]
    : instance.ready
      ? [`Ready${problems}`, problems ? "warn" : "good"]
      : [`Not ready${problems}`, "bad"];
  state(byId("health"), word, kind);
  const facts = [
    `relay ${instance.version}`,
    instance.config,
    `process ${instance.pid}`,
    `up ${duration(event.time - instance.started)}`,
    `${number(totals.listening)} of ${counted(totals.tunnels, "tunnel")} listen`,
  ];
  put(byId("process"), facts.filter(Boolean).join(" · "));
  put(document.querySelector("title"), `${word} – relay`);
  updateTiles(event);
  for (const name of ["tunnels", "carriers", "connections", "ended", "bans"]) tables[name].update(event[name], event);
  byId("bans").hidden = !event.bans.total;
  const lines = { total: event.log.length, matching: event.log.length, from: 0, rows: event.log };
  tables.log.update(lines, event);
  document.body.dataset.updated = event.time;
}

function notice(text) {
  put(byId("notice"), text);
  byId("notice").hidden = !text;
}

function query() {
  const wanted = new URLSearchParams();
  for (const [key, value] of Object.entries(view)) if (value !== DEFAULTS[key]) wanted.set(key, value);
  return wanted.toString();
}

function disconnect() {
  clearTimeout(again);
  if (source) source.close();
  source = null;
}

function connect() {
  disconnect();
  if (paused || ended || document.hidden) return;
  const wanted = query();
  source = new EventSource(`events${wanted ? `?${wanted}` : ""}`);
  source.addEventListener("message", (message) => {
    last = JSON.parse(message.data);
    notice("");
    update(last);
  });
  source.addEventListener("end", (message) => {
    ended = true;
    disconnect();
    notice(`Live updates have ended: ${JSON.parse(message.data).reason}. Reload this page to go on.`);
  });
  source.addEventListener("error", () => {
    const since = last ? ` since ${clock(last.time)}` : "";
    notice(`relay does not answer${since}. Trying again …`);
    state(byId("health"), "No answer", "bad");
    put(document.querySelector("title"), "No answer – relay");
    if (source && source.readyState === EventSource.CLOSED) again = setTimeout(connect, RETRY);
  });
}

// Show another view: the address keeps it, so that a reload and a link show the same.
function change(changes) {
  Object.assign(view, changes);
  history.replaceState(null, "", `#${query()}`);
  showOrder();
  connect();
}

function filterBy(text) {
  byId("filter").value = text;
  change({ filter: text, tunnels_from: 0, connections_from: 0 });
}

function showOrder() {
  for (const name of ["tunnels", "connections"]) {
    const order = view[name];
    for (const button of byId(name).querySelectorAll("[data-sort]")) {
      const cell = button.parentElement;
      if (button.dataset.sort !== order.replace("-", "")) cell.removeAttribute("aria-sort");
      else cell.setAttribute("aria-sort", order.startsWith("-") ? "descending" : "ascending");
    }
  }
}

function sortBy(name, key) {
  const button = byId(name).querySelector(`[data-sort="${key}"]`);
  const first = button.parentElement.classList.contains("number") ? `-${key}` : key; // figures: the largest first
  const other = first === key ? `-${key}` : key;
  change({ [name]: view[name] === first ? other : first, [`${name}_from`]: 0 });
}

function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const key of Object.keys(view)) {
    const value = wanted.get(key) ?? DEFAULTS[key];
    view[key] = typeof DEFAULTS[key] === "number" ? Number.parseInt(value, 10) || 0 : value;
    const button = byId(key)?.querySelector(`[data-sort="${CSS.escape(String(view[key]).replace("-", ""))}"]`);
    if ((key === "tunnels" || key === "connections") && !button) view[key] = DEFAULTS[key];
  }
  view.filter = view.filter.slice(0, 200);
  byId("filter").value = view.filter;
  showOrder();
}

for (const name of ["tunnels", "connections"]) {
  for (const button of byId(name).querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => sortBy(name, button.dataset.sort));
  }
  for (const button of byId(name).querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => {
      const from = tables[name].from + ROWS * Number(button.dataset.step);
      change({ [`${name}_from`]: Math.max(0, from) });
    });
  }
}
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("filter").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => filterBy(byId("filter").value), TYPING);
});
byId("pause").addEventListener("click", () => {
  paused = !paused;
  put(byId("pause"), paused ? "Resume" : "Pause");
  byId("pause").classList.toggle("on", paused);
  if (paused && last) notice(`Paused: this is the state at ${clock(last.time)}.`);
  else notice("");
  connect();
});
document.addEventListener("keydown", (event) => {
  const filter = byId("filter");
  if (event.key === "/" && event.target !== filter && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    filter.focus();
    filter.select();
  } else if (event.key === "Escape" && event.target === filter && filter.value) {
    filterBy("");
  }
});
document.addEventListener("visibilitychange", () => connect());
window.addEventListener("hashchange", () => {
  if (byId(location.hash.slice(1))) return; // the link to a section
  readAddress();
  connect();
});
readAddress();
connect();
