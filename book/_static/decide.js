/* The decision tool: sliders in, one sentence and two drawings out. The formulas are `decide`, of decision.js. */
(() => {
  const root = document.getElementById("decision-tool");
  if (!root) return;
  const { fields, presets } = JSON.parse(document.getElementById("decide-data").textContent);
  const GROUPS = [...new Set(fields.map((field) => field.group))];
  const EXITS = ["no exits", "one exit", "two exits"];
  const NOTCHES = 1000;
  const state = { ...presets[0].values };

  const make = (tag, attributes = {}, ...children) => {
    const svg = ["svg", "path", "line", "circle", "text", "title"].includes(tag);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const digits = (value, count = 2) => (value === null ? "none" : value.toFixed(count));
  const times = (value) => `${digits(value)}×`;
  const short = (value) => Number(value.toPrecision(value >= 100 ? 3 : 2)).toString();
  const inside = (field, value) => Number.isFinite(value) && value >= field.low && value <= field.high;

  /* Sliders: a log one spreads magnitudes evenly. */
  const notch = ({ low, high, log }, value) => (log ? (NOTCHES * Math.log(value / low)) / Math.log(high / low) : value);
  const denotch = ({ low, high, log }, at) => (log ? Number((low * (high / low) ** (at / NOTCHES)).toPrecision(3)) : at);

  const controls = fields.map((field) => {
    const { name, label, unit, low, high, log, note } = field;
    const by = field.by || 0.001;
    const range = log ? { min: 0, max: NOTCHES, step: 1 } : { min: low, max: high, step: by };
    const slider = make("input", { type: "range", ...range, "aria-label": `${label}, slider`, id: `decide-${name}-slider` });
    const help = { "aria-describedby": `decide-${name}-note`, id: `decide-${name}` };
    const box = make("input", { type: "number", min: low, max: high, step: log ? "any" : by, ...help });
    const title = make("label", { for: `decide-${name}` }, `${label} `, make("span", { class: "unit" }, unit));
    const text = make("p", { id: `decide-${name}-note`, class: "note" }, `${note} From ${low} to ${high}.`);
    const whole = make("div", { class: "field" }, title, slider, box, text);
    slider.addEventListener("input", () => change(name, denotch(field, Number(slider.value))));
    box.addEventListener("input", () => {
      const value = box.value === "" ? NaN : Number(box.value);
      const valid = inside(field, value) && (name !== "k" || Number.isInteger(value));
      box.setAttribute("aria-invalid", String(!valid));
      if (valid) change(name, value);
    });
    box.addEventListener("blur", show);
    return { field, slider, box, whole };
  });

  const preset = make("select", { id: "decide-preset" });
  const options = [...presets.map(({ name, label }) => [name, label]), ["own", "your own numbers"]];
  preset.append(...options.map(([value, label]) => make("option", { value }, label)));
  preset.addEventListener("change", () => {
    Object.assign(state, presets.find(({ name }) => name === preset.value)?.values);
    keep();
    show();
  });
  const exits = make("select", { id: "decide-exits" }, ...EXITS.map((label, value) => make("option", { value }, label)));
  exits.addEventListener("change", () => change("exits", Number(exits.value)));
  const choice = (control, label) => make("p", { class: "choice" }, make("label", { for: control.id }, label), control);

  const note = make("p", { class: "note", id: "decide-note" });
  preset.setAttribute("aria-describedby", note.id);
  const answer = make("p", { class: "answer", role: "status" });
  const verdicts = make("ul", { class: "verdicts" });
  const drawings = make("div", { class: "drawings" });
  const address = make("a", { id: "decide-address" }, "The address of these settings");
  const groups = GROUPS.map((group) => {
    const own = controls.filter(({ field }) => field.group === group).map(({ whole }) => whole);
    const head = group === "Exits" ? [choice(exits, "The target drafts for itself with")] : [];
    return make("fieldset", {}, make("legend", {}, group), ...head, ...own);
  });
  const results = make("div", {}, verdicts, drawings, make("p", {}, address));
  root.replaceChildren(choice(preset, "Start from"), note, answer, make("div", { class: "sides" }, make("div", {}, ...groups), results));

  /* The state is the address. */
  const written = () => `#${new URLSearchParams(state)}`;
  const keep = () => history.replaceState(null, "", written());
  const restore = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const field of [...fields, { name: "exits", low: 0, high: 2 }]) {
      const value = Number(given.get(field.name) || NaN);
      if (inside(field, value)) state[field.name] = ["k", "exits"].includes(field.name) ? Math.round(value) : value;
    }
    show();
  };
  function change(name, value) {
    state[name] = value;
    keep();
    show();
  }

  const speculation = (s, d) => {
    const top = d.flash_won ? d.flash_best : d.dense_best;
    const need = d.even_best === null ? "No acceptance is enough" : `It needs an acceptance of ${digits(d.even_best)}`;
    const has = `${need}; this draft has ${digits(s.alpha)}.`;
    const rate = `${short(d.plain * top.speedup)} tokens/s instead of ${short(d.plain)}`;
    const words = top.speedup > 1 ? `At k = ${top.k}, its best, ${rate}. ${has}` : `Even at k = ${top.k}, its best, ${rate}. ${has}`;
    return ["Speculation", top.speedup, words];
  };
  const flashhead = (s, d) => {
    const step = 1 / (1 - s.share + s.share / s.gain);
    const need = `At k = ${d.dense_best.k} it needs an acceptance of ${digits(d.flash_even)}; it keeps ${digits(s.alpha * (1 - s.loss))}.`;
    return ["FlashHead", d.flash_gain, `Over the dense head. The draft step gets ${times(step)} faster. ${need}`];
  };
  const deferral = (s, d) => {
    const words = `Over an eager final token, which costs ${digits(s.final)} target steps a round. The text stays the same.`;
    return ["Deferred final token", d.deferral, words];
  };
  const hierarchy = (s, d) => {
    const alone = s.exits && `One exit: ${times(d.exit.speedup)} plain decoding at k = ${d.exit.k}, ${times(d.exit_gain)} the draft.`;
    if (s.exits === 0) return ["Exits", null, "Choose one exit or two above to see whether the target should draft for itself."];
    if (s.exits === 1) return ["One exit", Math.min(d.exit.speedup, d.exit_gain), `${alone} The smaller of the two counts.`];
    const { speedup, k, wait } = d.hierarchy;
    const best = `${times(speedup)} plain decoding at its best: ${k} drafted a middle check, ${wait} or more a check of the target`;
    return ["Hierarchy", Math.min(d.hierarchy_gain, speedup), `${best}; ${times(d.hierarchy_gain)} the best without it. ${alone}`];
  };
  const item = ([title, ratio, words]) => {
    const [kind, badge] = ratio === null ? ["open", "not asked"] : ratio > 1.005 ? ["pays", "pays"] : ratio < 0.995 ? ["loses", "does not pay"] : ["open", "no difference"];
    const head = make("p", {}, make("strong", {}, title), " ", make("span", { class: `badge ${kind}` }, badge), ratio === null ? "" : ` ${times(ratio)}`);
    return make("li", {}, head, make("p", { class: "note" }, words));
  };
  const headline = (s, d) => {
    const ways = [[1, "plain decoding"], [d.dense_best.speedup, `the draft with a dense head, k = ${d.dense_best.k}`]];
    ways.push([d.flash_best.speedup, `the draft with FlashHead, k = ${d.flash_best.k}`]);
    if (d.exit) ways.push([d.exit.speedup, `one exit, k = ${d.exit.k}`]);
    if (d.hierarchy) ways.push([d.hierarchy.speedup, `the hierarchy, ${d.hierarchy.k} and ${d.hierarchy.wait}`]);
    const [speedup, name] = ways.reduce((best, way) => (way[0] > best[0] ? way : best));
    const yours = Math.max(d.dense, d.flash);
    const pay = d.even === null ? "no acceptance pays" : `it pays from an acceptance of ${digits(d.even)}`;
    const first = `Fastest: ${name}, ${short(d.plain * speedup)} tokens/s, ${times(speedup)} plain decoding. `;
    return [make("strong", {}, first), `At your k = ${s.k}: ${short(d.plain * yours)} tokens/s, ${times(yours)}; ${pay}.`];
  };

  /* Drawings: speedup against k, and against acceptance; the dashed line is plain decoding. */
  const SIZE = { width: 360, height: 230, left: 38, right: 10, top: 12, bottom: 40 };
  const drawing = ({ title, across, ticks, low, high, curves, marks }) => {
    const { width, height, left, right, top, bottom } = SIZE;
    const most = Math.max(1.25, ...curves.flatMap(({ points }) => points.map(([, y]) => y))) * 1.05;
    const x = (value) => left + ((value - low) / (high - low)) * (width - left - right);
    const y = (value) => height - bottom - (value / most) * (height - bottom - top);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
    const label = (px, py, words, anchor = "middle", kind = "") => svg.append(make("text", { x: px, y: py, "text-anchor": anchor, class: kind }, words));
    const rule = (x1, y1, x2, y2, kind) => svg.append(make("line", { x1, y1, x2, y2, class: kind }));
    const every = most > 6 ? 2 : most > 3 ? 1 : 0.5;
    for (let value = 0; value <= most; value += every) {
      rule(left, y(value), width - right, y(value), value === 1 ? "even" : "grid");
      label(left - 6, y(value) + 4, `${value}×`, "end");
    }
    ticks.forEach((value) => label(x(value), height - bottom + 16, value));
    label((left + width - right) / 2, height - 6, across);
    for (const { kind, points } of curves) {
      const path = points.map(([px, py], place) => `${place ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join("");
      svg.append(make("path", { d: path, class: `curve ${kind}` }));
    }
    for (const { at, of, words, kind } of marks) {
      if (of === undefined) rule(x(at), top, x(at), height - bottom, "mark");
      else svg.append(make("circle", { cx: x(at), cy: y(of), r: 4.5, class: `curve ${kind}` }));
      if (words) label(x(at) + (at > (low + high) / 2 ? -5 : 5), top + 10, words, at > (low + high) / 2 ? "end" : "start");
    }
    const key = [["dense", "dense head"], ["flash", "FlashHead"]].map(([kind, words]) => make("span", { class: `key ${kind}` }, words));
    return make("figure", {}, svg, make("figcaption", {}, `${title} `, ...key));
  };
  const draw = (s, d) => {
    const both = (points) => ["dense", "flash"].map((kind, flash) => ({ kind, points: points(flash) }));
    const ks = Array.from({ length: decide.MOST }, (_, place) => place + 1);
    const alphas = Array.from({ length: 100 }, (_, place) => place / 100);
    const even = d.even === null ? [] : [{ at: d.even, words: `break-even ${digits(d.even)}` }];
    const best = [[d.dense_best, "dense"], [d.flash_best, "flash"]].map(([{ k, speedup }, kind]) => ({ at: k, of: speedup, kind }));
    const here = [[d.dense, "dense"], [d.flash, "flash"]].map(([of, kind]) => ({ at: s.alpha, of, kind }));
    const named = "Speedup over plain decoding (dashed: break-even)";
    drawings.replaceChildren(
      drawing({ title: `${named} against k; circles: the best k.`, across: "k, drafted tokens a check", ticks: [1, 4, 8, 12, 16],
        low: 1, high: decide.MOST, curves: both((flash) => ks.map((k) => [k, decide.at(s, flash, s.alpha, k)])),
        marks: [{ at: s.k, words: `your k = ${s.k}` }, ...best] }),
      drawing({ title: `${named} against acceptance at k = ${s.k}; circles: this draft.`, across: "acceptance", ticks: [0, 0.25, 0.5, 0.75, 1],
        low: 0, high: 1, curves: both((flash) => alphas.map((alpha) => [alpha, decide.at(s, flash, alpha, s.k)])),
        marks: [...even, ...here] }),
    );
  };

  function show() {
    const d = decide.decision(state);
    for (const { field, slider, box, whole } of controls) {
      const value = state[field.name];
      if (document.activeElement !== slider) slider.value = notch(field, value);
      slider.setAttribute("aria-valuetext", `${value} ${field.unit}`);
      if (document.activeElement !== box) {
        box.value = value;
        box.setAttribute("aria-invalid", "false");
      }
      whole.hidden = (field.exits || 0) > state.exits;
    }
    exits.value = state.exits;
    const same = presets.find(({ values }) => Object.keys(values).every((name) => values[name] === state[name]));
    preset.value = same ? same.name : "own";
    preset.lastChild.disabled = Boolean(same);
    note.textContent = same ? same.note : "Changed by you.";
    answer.replaceChildren(...headline(state, d));
    verdicts.replaceChildren(...[speculation, flashhead, deferral, hierarchy].map((line) => item(line(state, d))));
    draw(state, d);
    address.href = written();
  }
  addEventListener("hashchange", restore);
  restore();
})();
