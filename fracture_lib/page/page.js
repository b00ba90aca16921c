() => {
  // One listener each on the document, as Gradio draws the parts of the page anew.
  document.addEventListener("input", ({ target }) => {
    const name = target.dataset?.sets;
    if (name) target.closest(".maps").style.setProperty(name, target.value / 100);
  });

  document.addEventListener("click", ({ target }) => {
    const button = target.closest?.("table.sortable th button");
    if (!button) return;
    const heading = button.closest("th");
    const table = heading.closest("table");
    const up = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of table.querySelectorAll("th")) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[heading.cellIndex].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      return x !== "" && y !== "" && !isNaN(x) && !isNaN(y) ? x - y : x.localeCompare(y);
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => (up ? compare(a, b) : compare(b, a)));
    table.tBodies[0].append(...rows);
  });

  // A film pasted anywhere on the page goes where a dropped one would.
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    const box = [...document.querySelectorAll(".films-in")].find((e) => e.offsetParent);
    const zone = box?.querySelector("button[aria-dropeffect], button:has(input), [data-testid='file-upload'], input[type=file]");
    const input = box?.querySelector("input[type=file]");
    if (!input) return;
    const transfer = new DataTransfer();
    for (const file of event.clipboardData.files) transfer.items.add(file);
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    event.preventDefault();
  });
}
