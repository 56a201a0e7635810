"use strict";
// Filter the examples by task and by "this arm right, that arm wrong". Without this script the
// filter stays hidden and every example is shown.
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const examples = [...document.querySelectorAll(".example")];
  const has = (list, arm) => list.split(" ").includes(arm);
  const apply = () => {
    const task = form.elements.task.value;
    const pair = form.elements.pair.value.split(" ").filter(Boolean);
    let shown = 0;
    for (const example of examples) {
      const { task: itsTask, right, wrong } = example.dataset;
      const fits = (!task || itsTask === task)
        && (!pair.length || (has(right, pair[0]) && has(wrong, pair[1])));
      example.hidden = !fits;
      shown += fits;
      for (const part of example.querySelectorAll("[data-arm]")) {
        part.hidden = pair.length > 0 && !pair.includes(part.dataset.arm);
      }
    }
    document.getElementById("count").textContent = `${shown} of ${examples.length} shown`;
  };
  form.hidden = false;
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
})();
