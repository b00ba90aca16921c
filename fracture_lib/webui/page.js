() => {
  // Listen on the document, because Gradio re-renders components.
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

  // Put images pasted anywhere on the page into the visible upload box, replacing its content.
  document.addEventListener("paste", async (event) => {
    const box = [...document.querySelectorAll(".upload-box")].find((element) => element.offsetParent);
    if (!box || !event.clipboardData?.files.length) return;
    event.preventDefault();
    const transfer = new DataTransfer();
    for (const file of event.clipboardData.files) transfer.items.add(file);
    box.querySelector("[aria-label=Clear]")?.click();
    let input = null;
    for (let tries = 0; tries < 50 && !(input = box.querySelector("input[type=file]")); tries++)
      await new Promise((resolve) => setTimeout(resolve, 100));
    if (!input) return;
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });
}
