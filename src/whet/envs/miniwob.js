// Runs in every document before its own scripts: a clock that only moves when it is told to, and the page as text.
(() => {
  "use strict";
  // --- The clock. Pages draw, fade, and wait by timers; here these run when `whet.advance` is called, in the order of their
  // times, so that an episode depends on neither the machine's speed nor the date.
  const START = Date.UTC(2016, 11, 1, 12);
  const RealDate = Date;
  const frame = window.requestAnimationFrame.bind(window);
  let now = START;
  let serial = 0;
  let timers = [];
  const set = (callback, delay, every, args) => {
    const wait = Math.max(1, Number(delay) || 0);
    timers.push({ id: ++serial, at: now + wait, every: every ? wait : 0, callback, args });
    return serial;
  };
  const clear = (id) => { timers = timers.filter((timer) => timer.id !== id); };
  window.setTimeout = (callback, delay, ...args) => set(callback, delay, false, args);
  window.setInterval = (callback, delay, ...args) => set(callback, delay, true, args);
  window.requestAnimationFrame = (callback) => set(() => callback(now - START), 16, false, []);
  window.clearTimeout = window.clearInterval = window.cancelAnimationFrame = clear;
  window.Date = class Date extends RealDate {
    constructor(...args) { if (args.length) super(...args); else super(now); }
    static now() { return now; }
  };
  performance.now = () => now - START;
  const advance = (milliseconds) => {
    const until = now + milliseconds;
    for (let guard = 0; guard < 20000; guard++) {
      let next = null;
      for (const timer of timers) {
        if (timer.at <= until && (!next || timer.at < next.at || (timer.at === next.at && timer.id < next.id))) next = timer;
      }
      if (!next) break;
      now = Math.max(now, next.at);
      if (next.every) next.at += next.every; else clear(next.id);
      try {
        if (typeof next.callback === "function") next.callback(...next.args);
      } catch (error) { console.error(error); }
    }
    now = until;
  };

  // --- What draws random numbers before the episode's own seed is set does so from a fixed one.
  let state = 1;
  Math.random = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  window.alert = () => {};
  window.confirm = () => true;
  window.prompt = () => null;

  // --- Who listens to the mouse.
  const MOUSE = new Set(["click", "dblclick", "mousedown", "mouseup", "pointerdown", "pointerup"]);
  const listening = new WeakSet();
  const add = EventTarget.prototype.addEventListener;
  EventTarget.prototype.addEventListener = function (type, ...rest) {
    if (MOUSE.has(type) && this instanceof Element) listening.add(this);
    return add.call(this, type, ...rest);
  };
  const styles = () => {
    const style = document.createElement("style");
    style.textContent = "*, *::before, *::after { transition: none !important; animation: none !important; caret-color: transparent; }";
    document.head.appendChild(style);
  };

  // --- The page as text.
  const FURNITURE = new Set(["reward-display", "sync-task-cover", "click-canvas", "query"]);
  const COLORS = new Map([
    ["rgb(255, 0, 0)", "red"], ["rgb(0, 128, 0)", "green"], ["rgb(0, 255, 0)", "lime"], ["rgb(0, 0, 255)", "blue"],
    ["rgb(255, 255, 0)", "yellow"], ["rgb(0, 255, 255)", "cyan"], ["rgb(255, 0, 255)", "magenta"], ["rgb(0, 0, 0)", "black"],
    ["rgb(255, 255, 255)", "white"], ["rgb(128, 128, 128)", "grey"], ["rgb(255, 165, 0)", "orange"], ["rgb(128, 0, 128)", "purple"],
    ["rgb(255, 192, 203)", "pink"], ["rgb(165, 42, 42)", "brown"], ["rgb(238, 130, 238)", "violet"], ["rgb(128, 0, 0)", "maroon"],
    ["rgb(0, 0, 128)", "navy"], ["rgb(0, 128, 128)", "teal"], ["rgb(128, 128, 0)", "olive"], ["rgb(192, 192, 192)", "silver"],
    ["rgb(211, 211, 211)", "light grey"],
  ]);
  const color = (value) => COLORS.get(value) || value.replace(/\s/g, "");
  const clean = (text) => text.replace(/[\s\u200b]+/g, " ").trim();
  let elements = [];

  const visible = (element, style) => {
    if (style.display === "none" || style.visibility === "hidden" || style.opacity === "0") return false;
    const box = element.getBoundingClientRect();
    if (element.tagName === "svg" || element.tagName === "g") return true;
    if (element instanceof SVGElement) return box.width > 2 || box.height > 2;
    return (box.width > 0 && box.height > 0) || element.childElementCount > 0;
  };
  // jQuery listens on an ancestor for elements that match a selector; these are what can be clicked, not the ancestor.
  const delegates = () => {
    const matched = new Set();
    const only = new Set();
    const $ = window.jQuery || window.$;
    if (!$ || !$._data) return { matched, only };
    for (const element of document.querySelectorAll("body, body *")) {
      const events = $._data(element, "events");
      if (!events) continue;
      const handlers = Object.keys(events).filter((type) => MOUSE.has(type)).flatMap((type) => [...events[type]]);
      for (const handler of handlers) {
        if (handler.selector) for (const match of $(element).find(handler.selector).get()) matched.add(match);
      }
      if (handlers.length && handlers.every((handler) => handler.selector)) only.add(element);
    }
    return { matched, only };
  };
  const shape = (element, style) => {
    const box = element.getBoundingClientRect();
    const size = `${Math.round(box.width)}x${Math.round(box.height)}`;
    const at = `at ${Math.round(box.left + box.width / 2)},${Math.round(box.top + box.height / 2)}`;
    if (element instanceof SVGElement) {
      const sides = element.tagName === "polygon" ? ` of ${element.points.numberOfItems} corners` : "";
      const kind = element.tagName === "rect" ? "rectangle" : element.tagName;
      return { role: kind + sides, name: [style.fill === "none" ? "" : color(style.fill), size, at].filter(Boolean).join(" ") };
    }
    const fill = style.backgroundColor === "rgba(0, 0, 0, 0)" ? "" : color(style.backgroundColor);
    const names = [...element.classList].filter((name) => !/^ui-(widget|corner|state|helper|icon|button|draggable|droppable)/.test(name));
    const what = names.map((name) => name.replace(/^ui-/, "")).join(" ") || element.id;
    return { role: "box", name: [what, fill, fill || !what ? size : "", fill || !what ? at : ""].filter(Boolean).join(" ") };
  };
  const described = (element, style) => {
    const tag = element.tagName.toLowerCase();
    const label = clean(element.getAttribute("aria-label") || element.title || element.getAttribute("placeholder") || "").replace(/:$/, "");
    if (tag === "a") return { role: "link", name: clean(element.innerText) || label || shape(element, style).name };
    if (tag === "button") return { role: "button", name: clean(element.innerText) || label || shape(element, style).name };
    if (tag === "textarea") return { role: "textarea", name: label, value: element.value };
    if (tag === "select") {
      const chosen = [...element.selectedOptions].map((option) => clean(option.label)).join(", ");
      const options = [...element.options].map((option) => clean(option.label));
      return { role: element.multiple || element.size > 1 ? "listbox" : "list", name: label, value: chosen, options };
    }
    if (tag === "input") {
      const kind = element.type;
      const own = element.labels && element.labels.length ? clean(element.labels[0].innerText) : "";
      if (kind === "checkbox" || kind === "radio") return { role: kind, name: own, value: element.checked ? "on" : "off" };
      if (kind === "submit" || kind === "button" || kind === "reset") return { role: "button", name: element.value };
      if (kind === "time") return { role: "time", name: "(write as 09:15PM)", value: element.value };
      if (kind === "date") return { role: "date", name: "(write as 12/31/2016)", value: element.value };
      if (kind === "range") return { role: "slider", name: label, value: element.value };
      return { role: kind === "password" ? "password" : "textbox", name: label, value: element.value };
    }
    if (element.tagName === "text") return { role: "text", name: `${clean(element.textContent)} ${shape(element, style).name}` };
    const text = element instanceof SVGElement ? "" : clean(element.innerText || "");
    return text ? { role: "item", name: text } : shape(element, style);
  };

  const NATIVE = new Set(["A", "BUTTON", "INPUT", "TEXTAREA", "SELECT"]);
  const DRAWN = new Set(["circle", "rect", "polygon", "ellipse", "path", "line", "text", "image"]);
  const SKIPPED = new Set(["SCRIPT", "STYLE", "OPTION", "CANVAS", "DESC", "TITLE"]);
  const LONGEST = 80;  // characters of text that still make a container with a mouse handler one thing to click on
  const observe = () => {
    elements = [];
    const lines = [];
    const listed = [];
    let line = [];
    const flush = () => { if (line.length) lines.push(line.join(" ")); line = []; };
    const { matched, only } = delegates();
    const clickable = (element) => NATIVE.has(element.tagName) || element.onclick || element.onmousedown || matched.has(element)
      || (listening.has(element) && !only.has(element)) || element.draggable === true || Number(element.getAttribute("tabindex") || -1) >= 0
      || element.classList.contains("ui-draggable") || (element.parentElement && element.parentElement.classList.contains("ui-sortable"));
    const shown = (element) => !FURNITURE.has(element.id) && !SKIPPED.has(element.tagName.toUpperCase()) && visible(element, getComputedStyle(element));
    // Whether something to click on stands inside; a container's text is what stands outside of those.
    const holds = (element) => [...element.children].some((child) => shown(child) && (clickable(child) || holds(child)));
    const own = (element) => clean([...element.childNodes].map((child) => {
      if (child.nodeType === Node.TEXT_NODE) return child.data;
      if (child.nodeType !== Node.ELEMENT_NODE || !shown(child) || clickable(child)) return " ";
      return ` ${own(child)} `;
    }).join(""));
    const number = (element, found) => {
      elements.push(element);
      listed.push({ id: elements.length, ...found });
      flush();
      const value = found.options ? `${found.value || "-"} (options: ${found.options.join(" | ")})` : found.value;
      const name = found.name ? ` ${found.name}` : "";
      lines.push(`[${elements.length}] ${found.role}${name}${value === undefined ? "" : `: ${value}`}`.trimEnd());
    };
    // `offered`: an ancestor listens, so that what is drawn can be clicked on. `told`: the text stands in a line already.
    const walk = (element, offered, told) => {
      if (!shown(element)) return;
      const style = getComputedStyle(element);
      const svg = element instanceof SVGElement;
      const can = element.tagName !== "BODY" && clickable(element);
      const drawn = svg && DRAWN.has(element.tagName);
      if (drawn && !can && !offered) {
        const { role, name } = described(element, style);
        flush();
        lines.push(`${role} ${name}`);
        return;
      }
      if (NATIVE.has(element.tagName) || drawn || (can && !svg && !holds(element))) {
        number(element, described(element, style));
        return;
      }
      const block = !/^(inline|contents|table-cell)/.test(style.display);
      if (block) flush();
      const name = can && !svg ? own(element) : "";
      const item = name && name.length <= LONGEST;
      if (item) number(element, { role: "item", name });
      const labelled = element.tagName === "LABEL" && element.control && ["checkbox", "radio"].includes(element.control.type);
      for (const child of element.childNodes) {
        if (child.nodeType === Node.TEXT_NODE) {
          const text = clean(child.data);
          if (text && !told && !item && !labelled) line.push(text);
        } else if (child.nodeType === Node.ELEMENT_NODE) {
          if (child.tagName === "BR") flush();
          else if (child.tagName === "IMG") { if (child.alt) line.push(child.alt); }
          else walk(child, offered || can, told || item || labelled);
          if (child.tagName === "TD" || child.tagName === "TH") line.push("|");
        }
      }
      if (block) { while (line[line.length - 1] === "|") line.pop(); flush(); }
    };
    walk(document.body, false, false);
    flush();
    return { goal: goal(), lines, elements: listed };
  };
  // Some pages give their sentence together with the fields that it was made of; these would give the answer away.
  const goal = () => {
    const told = core.getUtterance();
    return typeof told === "string" ? told : told.utterance;
  };

  const state_ = () => ({
    done: WOB_DONE_GLOBAL, reward: WOB_RAW_REWARD_GLOBAL, reason: WOB_REWARD_REASON ? String(WOB_REWARD_REASON) : "", ready: WOB_TASK_READY,
  });
  const report = (milliseconds) => {
    advance(milliseconds);
    const result = state_();
    return result.done ? result : { ...result, ...observe() };
  };
  // A field in which dragging would mark text or options, and scroll by the browser's own clock for as long as it goes on.
  const field = (element) => {
    const marks = ["SELECT", "TEXTAREA", "INPUT"].includes(element.tagName) && element.type !== "range";
    return marks ? described(element, getComputedStyle(element)).role : "";
  };
  // Where to press the mouse for an element: a point of it that nothing else covers, if there is one.
  const point = async (number) => {
    const element = elements[number - 1];
    if (!element || !element.isConnected) return null;
    const before = element.getBoundingClientRect();
    element.scrollIntoView({ block: "nearest", inline: "nearest" });
    const after = element.getBoundingClientRect();
    // What comes to lie under a mouse that stands still is told so with the next frame.
    if (before.x !== after.x || before.y !== after.y) await frames();
    const box = element.getBoundingClientRect();
    const nested = elements.filter((other) => other !== element && element.contains(other));
    const inside = (x, y) => {
      const hit = document.elementFromPoint(x, y);
      return hit && element.contains(hit) && !nested.some((other) => other.contains(hit));
    };
    const boxes = [...element.getClientRects()].filter((rect) => rect.width && rect.height);
    for (const rect of boxes.length ? boxes : [box]) {
      for (const [u, v] of [[0.5, 0.5], [0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75], [0.1, 0.1], [0.9, 0.9], [0.1, 0.9], [0.9, 0.1]]) {
        const x = rect.left + u * rect.width;
        const y = rect.top + v * rect.height;
        if (inside(x, y)) return { x, y, covered: false, field: field(element) };
      }
    }
    return { x: box.left + box.width / 2, y: box.top + box.height / 2, covered: true, field: field(element) };
  };
  // Pictures load when they like; an element that is nothing but a picture has no size before.
  const pictures = async () => {
    const addresses = new Set([...document.images].map((image) => image.src));
    for (const sheet of document.styleSheets) {
      let rules = [];
      try { rules = [...sheet.cssRules]; } catch (error) { continue; }
      for (const rule of rules) {
        for (const match of rule.cssText.matchAll(/url\("([^"]+)"\)/g)) addresses.add(new URL(match[1], sheet.href || location.href).href);
      }
    }
    await Promise.allSettled([...addresses].filter((address) => /\.(png|gif|jpe?g|svg)$/.test(address)).map((address) => {
      const image = new Image();
      image.src = address;
      kept.push(image);
      return image.decode();
    }));
  };
  const kept = [];
  const frames = () => new Promise((resolve) => frame(() => frame(resolve)));
  const whet = {
    async begin(seed, mode) {
      await pictures();
      styles();
      advance(100);
      Math.seedrandom(seed);
      core.setDataMode(mode);
      core.EPISODE_MAX_TIME = 1e12;  // the page's own clock never runs out: turns are counted instead
      core.startEpisodeReal();
      await frames();
    },
    advance, report, point,
    // An element that text can go into is given the focus, with its content selected; otherwise what it is.
    focus(number, text) {
      const element = elements[number - 1];
      if (!element || !element.isConnected) return "gone";
      // In these a blank opens a picture of a clock or a calendar, which then takes the keys.
      if ((element.type === "time" || element.type === "date") && /\s/.test(text)) return "field that takes no blanks";
      const editable = element.tagName === "TEXTAREA" || element.isContentEditable || (element.tagName === "INPUT"
        && !["checkbox", "radio", "button", "submit", "reset", "range"].includes(element.type));
      if (!editable) return described(element, getComputedStyle(element)).role;
      if (element.readOnly) return "field that cannot be changed";
      if (element.disabled) return "disabled field";
      element.focus();
      if (element.select) element.select();
      return "";
    },
    // One option; of a list that takes several, it is added or taken away.
    select(number, wanted) {
      const element = elements[number - 1];
      if (!element || !element.isConnected) return { error: "gone" };
      if (element.tagName !== "SELECT") return { error: described(element, getComputedStyle(element)).role };
      const options = [...element.options];
      const labels = options.map((option) => clean(option.label));
      const option = options[labels.indexOf(wanted)];
      if (!option) return { error: "option", options: labels };
      option.selected = element.multiple ? !option.selected : true;
      element.focus();
      element.dispatchEvent(new Event("input", { bubbles: true }));
      element.dispatchEvent(new Event("change", { bubbles: true }));
      return { error: "" };
    },
    scroll(number, end) {
      const element = elements[number - 1];
      if (!element || !element.isConnected) return false;
      element.scrollTop = end === "bottom" ? element.scrollHeight : 0;
      element.dispatchEvent(new Event("scroll"));
      return true;
    },
    timeout() { core.endEpisode(-1, false, "timed out"); return state_(); },
  };
  Object.defineProperty(window, "whet", { value: whet });
})();
