// What the page can do beyond reading: theme, contents, sortable tables, circuits to look into.
// Everything is read from what stands on the page, as text and numbers; nothing is ever parsed as markup.
"use strict";
(() => {
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const labelled = (words, control) => make("label", {}, make("span", { textContent: words }), control);
  const select = (all, choices) => {
    const control = make("select", {}, make("option", { value: "", textContent: all }));
    for (const [value, words] of choices) control.append(make("option", { value, textContent: words }));
    return control;
  };

  // ------------------------------------------------------------------------------------------ theme
  const THEMES = ["system", "dark", "light"];
  const root = document.documentElement;
  const theme = make("button", { type: "button", className: "theme" });
  let chosen = "system";
  try { chosen = localStorage.getItem("evalkit-theme") || chosen; } catch { /* no storage: not remembered */ }
  const show = () => {
    if (!THEMES.includes(chosen)) chosen = "system";
    if (chosen === "system") delete root.dataset.theme;
    else root.dataset.theme = chosen;
    theme.textContent = `Theme: ${chosen}`;
  };
  theme.addEventListener("click", () => {
    chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
    try { localStorage.setItem("evalkit-theme", chosen); } catch { /* as above */ }
    show();
  });
  show();
  document.querySelector(".skip").after(theme);

  // --------------------------------------------------------------------------------------- contents
  const links = new Map();
  for (const link of document.querySelectorAll(".contents a")) links.set(link.hash.slice(1), link);
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(target.id).setAttribute("aria-current", "location");
    }
  }, { rootMargin: "0px 0px -75% 0px" });
  for (const id of links.keys()) seen.observe(document.getElementById(id));

  // ------------------------------------------------------------------------------------------ tables
  const number = (words) => Number.parseFloat(words.replace("−", "-").replace(/[^\d.+-]/g, ""));
  const compare = (column, numeric, sign) => (a, b) => {
    const [x, y] = [a, b].map((row) => row.cells[column].textContent.trim());
    if (!numeric) return sign * x.localeCompare(y);
    const [u, v] = [number(x), number(y)];
    if (Number.isNaN(u) || Number.isNaN(v)) return Number.isNaN(u) - Number.isNaN(v);
    return sign * (u - v);
  };
  const sortable = (table) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button", textContent: head.textContent });
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const numeric = head.classList.contains("num");
        body.append(...[...body.rows].sort(compare(column, numeric, descending ? -1 : 1)));
      });
    });
  };
  const filterable = (table) => {
    const rows = [...table.tBodies[0].rows];
    const words = make("input", { type: "search", placeholder: "any word" });
    const count = make("output");
    const tools = make("div", { className: "tools", role: "group" }, labelled("Filter", words));
    tools.setAttribute("aria-label", `Filter: ${table.caption.textContent}`);
    const choices = [];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (!head.classList.contains("choice")) return;
      const values = [...new Set(rows.map((row) => row.cells[column].textContent))].sort();
      if (values.length < 2) return;
      const control = select("all", values.map((value) => [value, value]));
      choices.push([column, control]);
      tools.append(labelled(head.textContent, control));
    });
    const filter = () => {
      const wanted = words.value.toLowerCase();
      let n = 0;
      for (const row of rows) {
        const fits = row.textContent.toLowerCase().includes(wanted)
          && choices.every(([column, c]) => !c.value || row.cells[column].textContent === c.value);
        row.hidden = !fits;
        n += fits;
      }
      count.textContent = `${n} of ${rows.length} rows`;
    };
    tools.append(count);
    tools.addEventListener("input", filter);
    table.before(tools);
    filter();
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    filterable(table);
    sortable(table);
  }

  // ---------------------------------------------------------------------------------------- circuits
  const about = (part) => part.querySelector("title").textContent;
  const circuit = (svg) => {
    const parts = [...svg.querySelectorAll(".part")];
    const nodes = parts.filter((part) => part.classList.contains("node"));
    const arcs = parts.filter((part) => part.classList.contains("arc"));
    const effects = [...nodes, ...arcs].map((part) => Math.abs(Number(part.dataset.effect)));
    const largest = Math.max(0, ...effects);

    const least = make("input", { type: "range", min: 0, max: largest, step: largest / 100 || 1, value: 0 });
    const value = make("output", { textContent: "0.00 nats" });
    const layers = [...new Set(nodes.map((node) => node.dataset.layer))].sort((a, b) => b - a);
    const names = new Map(nodes.map((node) => [node.dataset.layer, about(node).split(/\s/)[0]]));
    const hook = select("all", layers.map((layer) => [layer, names.get(layer)]));
    const sign = select("both", [["1", "towards failure"], ["-1", "away from failure"]]);
    const reset = make("button", { type: "button", textContent: "Show all" });
    const tools = make("div", { className: "tools", role: "group" },
      labelled("Least |effect|", least), value, labelled("Hook", hook), labelled("Sign", sign), reset);
    tools.setAttribute("aria-label", "Filter the circuit");
    const panel = make("ul", { className: "panel" });
    panel.setAttribute("aria-live", "polite");
    panel.setAttribute("aria-label", "Values of what is pointed at or pinned");
    svg.before(tools);
    svg.after(panel);

    const pinned = new Set();
    const draw = (pointed) => {
      const shown = pointed && !pinned.has(pointed) ? [...pinned, pointed] : [...pinned];
      const lines = shown.map((part) => make("li", { textContent: about(part) }));
      if (!lines.length) lines.push(make("li", { className: "hint",
        textContent: "Point at a part to read its values; click, Enter or Space pins it, Escape lets go." }));
      panel.replaceChildren(...lines);
      const lit = new Set(shown.filter((part) => part.dataset.node).map((part) => part.dataset.node));
      for (const arc of arcs) {
        const meets = lit.has(arc.dataset.from) || lit.has(arc.dataset.to) || shown.includes(arc);
        arc.classList.toggle("dim", shown.length > 0 && !meets);
      }
    };
    const pin = (part) => {
      if (!pinned.delete(part)) pinned.add(part);
      part.setAttribute("aria-pressed", String(pinned.has(part)));
      draw(part);
    };
    const release = () => {
      for (const part of pinned) part.setAttribute("aria-pressed", "false");
      pinned.clear();
      draw();
    };
    const filter = () => {
      const smallest = Number(least.value);
      value.textContent = `${smallest.toFixed(2)} nats`;
      const fits = (part) => Math.abs(Number(part.dataset.effect)) >= smallest
        && (!sign.value || Number(part.dataset.effect) * Number(sign.value) > 0);
      const gone = new Set();
      for (const node of nodes) {
        const stays = fits(node) && (!hook.value || node.dataset.layer === hook.value);
        node.classList.toggle("off", !stays);
        if (!stays) gone.add(node.dataset.node);
      }
      for (const arc of arcs) {
        arc.classList.toggle("off", !fits(arc) || gone.has(arc.dataset.from) || gone.has(arc.dataset.to));
      }
    };
    tools.addEventListener("input", filter);
    reset.addEventListener("click", () => {
      least.value = 0;
      hook.value = sign.value = "";
      filter();
      release();
    });

    svg.setAttribute("role", "group");
    svg.setAttribute("aria-label", svg.querySelector("title").textContent);
    svg.querySelector("title").remove();
    for (const part of parts) {
      part.setAttribute("tabindex", "0");
      part.setAttribute("role", "button");
      part.setAttribute("aria-pressed", "false");
      part.setAttribute("aria-label", about(part));
      part.addEventListener("mouseenter", () => draw(part));
      part.addEventListener("mouseleave", () => draw());
      part.addEventListener("focus", () => draw(part));
      part.addEventListener("blur", () => draw());
      part.addEventListener("click", () => pin(part));
      part.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") pin(part);
        else if (event.key === "Escape") release();
        else return;
        event.preventDefault();
      });
    }
    draw();
  };
  for (const svg of document.querySelectorAll("svg.circuit")) circuit(svg);

  // ----------------------------------------------------------------------------------------- sounds
  // A word or a segment plays the clip from its beginning; a line follows the sound.
  const sound = (svg) => {
    const audio = svg.closest("figure").nextElementSibling;
    const moments = [...svg.querySelectorAll(".moment")];
    if (!audio || audio.tagName !== "AUDIO" || !moments.length) return;
    const [left, width] = [150, 480];
    const height = svg.viewBox.baseVal.height;
    const needle = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, value] of Object.entries({ class: "needle", x1: left, x2: left, y1: 0, y2: height })) {
      needle.setAttribute(name, value);
    }
    svg.append(needle);
    const duration = Number(moments[0].dataset.duration);
    const follow = () => {
      const x = left + width * Math.min(audio.currentTime / duration, 1);
      needle.setAttribute("x1", x);
      needle.setAttribute("x2", x);
      if (!audio.paused) requestAnimationFrame(follow);
    };
    for (const event of ["play", "seeked", "timeupdate"]) audio.addEventListener(event, follow);
    svg.setAttribute("role", "group");
    svg.setAttribute("aria-label", svg.querySelector("title").textContent);
    svg.querySelector("title").remove();
    for (const moment of moments) {
      const play = () => {
        audio.currentTime = Number(moment.dataset.start);
        audio.play();
      };
      moment.setAttribute("tabindex", "0");
      moment.setAttribute("role", "button");
      moment.setAttribute("aria-label", `Play from ${about(moment)}`);
      moment.addEventListener("click", play);
      moment.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        play();
      });
    }
  };
  for (const svg of document.querySelectorAll("svg.sound")) sound(svg);
})();
