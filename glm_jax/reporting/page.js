// The values under the pointer, in the captions of all panels at once: they share one axis of steps.
(() => {
  const { axis, panels } = JSON.parse(document.getElementById("figures").textContent);
  const views = [...document.querySelectorAll("svg[data-panel]")].map((svg) => ({
    ...panels[svg.dataset.panel],
    svg,
    cursor: svg.querySelector(".cursor"),
    output: svg.parentElement.querySelector("output"),
  }));
  for (const view of views) view.latest = [...view.output.childNodes];

  function stepUnder(svg, event) {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * axis.width;
    const share = (x - axis.start) / (axis.stop - axis.start);
    return axis.high * Math.min(1, Math.max(0, share));
  }

  function nearest(xs, step) {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < step) low = middle; else high = middle;
    }
    return step - xs[low] < xs[high] - step ? low : high;
  }

  function written(value, form) {
    if (value === null) return "not finite";
    if (form === "percent") return (100 * value).toFixed(value < 0.0995 ? 1 : 0) + " %";
    const compact = { notation: "compact", maximumSignificantDigits: 3 };
    if (form === "si") return value.toLocaleString("en", compact);
    const tiny = value !== 0 && Math.abs(value) < 1e-3;
    return tiny ? value.toExponential(2) : value.toLocaleString("en", { maximumSignificantDigits: 4 });
  }

  function read(view, step) {
    const x = axis.start + (step / axis.high) * (axis.stop - axis.start);
    view.cursor.setAttribute("x1", x);
    view.cursor.setAttribute("x2", x);
    view.cursor.classList.add("shown");
    const parts = view.curves.filter((curve) => curve.x.length).map((curve) => {
      const i = nearest(curve.x, step);
      const part = document.createElement("span");
      part.className = curve.colour;
      const name = view.curves.length > 1 ? curve.name + " " : "";
      part.textContent = name + written(curve.y[i], view.form);
      return part;
    });
    const where = document.createElement("span");
    where.className = "where";
    where.textContent = Math.round(step).toLocaleString("en");
    view.output.replaceChildren(where, ...parts);
  }

  function leave() {
    for (const view of views) {
      view.cursor.classList.remove("shown");
      view.output.replaceChildren(...view.latest);
    }
  }

  for (const { svg } of views) {
    svg.addEventListener("pointermove", (event) => {
      const step = stepUnder(svg, event);
      for (const view of views) read(view, step);
    });
    svg.addEventListener("pointerleave", leave);
  }
})();
