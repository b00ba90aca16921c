() => {
  // Keep the state of the page in its address, so that it can be shared and survives a reload. A tab is a step
  // to go back from; the first one has no name there. Return whether the address has changed.
  window.setQuery = (name, value) => {
    const url = new URL(location);
    const old = url.searchParams.get(name) ?? (name === "tab" ? "single" : null);
    if (old === String(value)) return false;
    if (name === "tab" && value === "single") url.searchParams.delete(name);
    else url.searchParams.set(name, value);
    if (name === "tab") history.pushState(history.state, "", url);
    else history.replaceState(history.state, "", url);
    return true;
  };
  const tab = (name) => document.querySelector(`[role=tab][data-tab-id="${CSS.escape(name)}"]`);
  const open = (name) => tab(name)?.click();
  // If what had the focus, such as a button that leads here, is hidden now, move the focus to the tab.
  window.showTab = (name) => {
    if (!setQuery("tab", name)) return; // Gradio also tells of the tab that it opens at first
    setTimeout(() => document.activeElement === document.body && tab(name)?.focus({ preventScroll: true }), 100);
  };
  addEventListener("popstate", () => open(new URL(location).searchParams.get("tab") ?? "single"));

  // A link such as ?tab=models opens the tab and keeps the answer.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='?tab=']");
    if (!link) return;
    event.preventDefault();
    open(link.getAttribute("href").slice(5));
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
