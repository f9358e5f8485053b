// Moves a page through the epochs of its run. Text is only ever set as text.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);
  const slider = one("#epoch"), shown = one("#shown"), play = one("#play"), tip = one("#tip");
  const percent = (tenths) => tenths === null ? "" : (tenths / 10).toFixed(1);  // as the page has it without a script

  for (const button of all("[data-copy]")) {
    if (!navigator.clipboard) break;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  const nearest = (places, x) => places.reduce((best, place, i) => Math.abs(place - x) < Math.abs(places[best] - x) ? i : best, 0);

  function mark(svg, x) {
    const cursor = one(".cursor", svg);
    cursor.toggleAttribute("hidden", x === undefined);
    if (x !== undefined) cursor.setAttribute("transform", `translate(${x} 0)`);
  }

  function written(plot, value) {
    if (value === null || value === undefined) return "";
    return plot.percent ? `${(100 * value).toFixed(1)} %` : `${Number(value.toPrecision(4))}`;
  }

  function showPlot(figure, place) {
    const plot = data.plots[figure.dataset.plot];
    mark(one("svg", figure), plot.x[place]);
    for (const label of all("[data-value]", figure)) {
      label.textContent = written(plot, plot.lines[label.dataset.value][place]);
    }
  }

  function showCell(figure, frame) {
    const svg = one("svg", figure), lanes = svg.dataset.lanes.split(" ").map(Number);
    svg.style.opacity = frame ? 1 : .2;
    one(".missing", figure).hidden = Boolean(frame);
    all(".edge", svg).forEach((edge, i) => {
      if (!frame) return;
      const [state, operation, weight] = frame[i], [words, colour] = data.operations[operation], x = lanes[state];
      edge.setAttribute("class", `edge ${colour}`);
      one(".dot", edge).setAttribute("cx", x);
      for (const path of all(".line, .halo", edge)) path.setAttribute("d", path.getAttribute("d").replace(/^M[\d.]+/, `M${x}`));
      one(".name", edge).textContent = words;
      one(".share", edge).textContent = weight === null ? "" : `${percent(weight)} %`;
    });
  }

  function showTable(element, place) {
    const table = data.tables[element.dataset.table];
    one("[data-epoch]", element).textContent = `epoch ${data.alphaEpochs[place]}`;
    all("tbody tr", element).forEach((row, i) => {
      const weights = table.weights[place][i], kept = table.answers[place][i], cells = all("td", row);
      row.className = kept.length ? "kept" : "";
      weights.forEach((weight, j) => {
        const share = Math.min(1, Math.max(0, weight / 1000));
        cells[j].textContent = percent(weight);
        cells[j].style.setProperty("--w", share.toFixed(3));
        cells[j].className = kept.includes(j) ? "answer" : "";
      });
      cells[weights.length].textContent = percent(table.leads[place][i]);
    });
  }

  function show(step) {
    const epoch = data.epochs[step], place = data.alphaEpochs.indexOf(epoch);
    all("[data-plot]").forEach((figure) => showPlot(figure, data.plots[figure.dataset.plot].epochs.indexOf(epoch)));
    all("[data-cell]").forEach((figure) => { if (data.cells.length) showCell(figure, data.cells[figure.dataset.cell][step]); });
    if (place >= 0) all("[data-table]").forEach((table) => showTable(table, place));
    all(".panel svg").forEach((svg) => mark(svg, data.x[place]));
    if (slider) {
      slider.value = step;
      shown.textContent = `epoch ${epoch}`;
      slider.setAttribute("aria-valuetext", `epoch ${epoch} of ${data.epochs[0]} to ${data.epochs.at(-1)}`);
    }
  }

  // A pointer over a picture shows the values there, and a click goes to that epoch.
  function follow(element, placeAt, over, out, epochs) {
    const svg = one("svg", element);
    const placeOf = (event) => {
      const box = svg.getBoundingClientRect();
      return placeAt((event.clientX - box.left) / box.width * svg.viewBox.baseVal.width);
    };
    svg.addEventListener("pointermove", (event) => over(placeOf(event), event));
    svg.addEventListener("pointerleave", out);
    svg.addEventListener("click", (event) => { if (slider) show(Math.max(0, data.epochs.indexOf(epochs[placeOf(event)]))); });
  }

  // The values of several lines under the pointer, the largest first.
  function showTip(event, title, names, values, text) {
    const order = values.map((_, i) => i).filter((i) => values[i] !== null).sort((a, b) => values[b] - values[a]);
    const head = document.createElement("strong");
    head.textContent = title;
    tip.replaceChildren(head);
    for (const i of order.slice(0, 12)) {
      const line = document.createElement("div"), name = document.createElement("span"), value = document.createElement("span");
      name.textContent = names[i];
      value.textContent = text(values[i]);
      line.append(name, value);
      tip.append(line);
    }
    tip.hidden = false;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8))}px`;
  }

  for (const figure of all("[data-plot]")) {
    const plot = data.plots[figure.dataset.plot];
    const current = () => slider ? plot.epochs.indexOf(data.epochs[slider.value]) : plot.x.length - 1;
    const over = "tip" in figure.dataset
      ? (place, event) => {
        mark(one("svg", figure), plot.x[place]);
        showTip(event, `epoch ${plot.epochs[place]}`, plot.names, plot.lines.map((line) => line[place]), (value) => written(plot, value));
      }
      : (place) => showPlot(figure, place);
    follow(figure, (x) => nearest(plot.x, x), over, () => { tip.hidden = true; showPlot(figure, current()); }, plot.epochs);
  }

  for (const panels of all("[data-panels]")) {
    all(".panel", panels).forEach((panel, row) => {
      const table = data.tables[panels.dataset.panels];
      const over = (place, event) => showTip(event, `${table.choices[row]}, epoch ${data.alphaEpochs[place]}`, table.names,
        table.weights[place][row], (weight) => `${percent(weight)} %`);
      follow(panel, (x) => nearest(data.x, x), over, () => { tip.hidden = true; }, data.alphaEpochs);
    });
  }

  if (slider) {
    const last = Number(slider.max);
    let timer = 0;
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
    };
    const step = () => {
      show(Number(slider.value) + 1);
      if (Number(slider.value) >= last) stop();
    };
    slider.closest(".epochs").hidden = false;
    slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (Number(slider.value) >= last) show(0);
      play.textContent = "Pause";
      timer = setInterval(step, Math.max(80, Math.min(500, 12000 / last)));
    });
    show(Number(slider.value));
  } else if (data.epochs.length) {
    show(data.epochs.length - 1);
  }
})();
