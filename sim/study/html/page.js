"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("plots").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /* Frame and text in the colours of the page, which follow the system. */
  function themed(layout) {
    const axis = (own) => ({ ...own, gridcolor: ink("--line"), linecolor: ink("--line") });
    return {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink("--ink"), size: 12 },
      xaxis: { ...axis(layout.xaxis), fixedrange: touch },
      yaxis: { ...axis(layout.yaxis), fixedrange: true },
      /* A finger scrolls the page, a mouse zooms into a span of time. */
      dragmode: touch ? false : "zoom",
      hovermode: "closest",
    };
  }

  function draw() {
    for (const [name, figure] of Object.entries(figures)) {
      const place = document.getElementById(`plot-${name}`);
      try {
        Plotly.react(place, figure.data, themed(figure.layout), {
          displayModeBar: false, responsive: true,
        });
      } catch (error) {
        place.innerHTML = '<p class="broken"></p>';
        place.firstChild.textContent = `This plot could not be drawn: ${error}`;
      }
    }
    const drawn = document.querySelectorAll(".plot.js-plotly-plot .main-svg").length > 0;
    document.body.dataset.drawn = drawn ? String(Object.keys(figures).length) : "0";
  }

  draw();
  dark.addEventListener("change", draw);
})();
