// Zoom, pan, tone and full screen. Gradio runs this once, with `element`, and updates the HTML in place, so the
// settings live in variables of the element around it and outlast a change of the overlay.
const root = element.closest("#viewer");
const MAX_ZOOM = 8;
const start = { zoom: 1, x: 0, y: 0, invert: 0, brightness: 1, contrast: 1 };
let view = { ...start };
let xray = props.value?.xray;

function show() {
  const room = (view.zoom - 1) / 2; // how far the image can move, as a fraction of the stage
  view.x = Math.max(-room, Math.min(room, view.x));
  view.y = Math.max(-room, Math.min(room, view.y));
  for (const [name, value] of Object.entries(view)) root.style.setProperty(`--${name}`, value);
  root.classList.toggle("zoomed", view.zoom > 1);
}

function zoom(factor) {
  const zoom = Math.max(1, Math.min(MAX_ZOOM, view.zoom * factor));
  Object.assign(view, { x: (view.x * zoom) / view.zoom, y: (view.y * zoom) / view.zoom, zoom });
  show();
}

function move(x, y) {
  view.x += x;
  view.y += y;
  show();
}

function reset() {
  view = { ...start };
  for (const input of element.querySelectorAll("[data-tone]"))
    input.type === "checkbox" ? (input.checked = false) : (input.value = 1);
  show();
}

element.addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (!button) return;
  if (button.dataset.zoom === "0") reset();
  else if (button.dataset.zoom) zoom(Number(button.dataset.zoom));
  else if (document.fullscreenElement) document.exitFullscreen();
  else root.requestFullscreen();
});
element.addEventListener("input", ({ target }) => {
  view[target.dataset.tone] = target.type === "checkbox" ? Number(target.checked) : Number(target.value);
  show();
});
element.addEventListener("dblclick", ({ target }) => target.closest(".stage") && zoom(view.zoom > 1 ? 0 : 2.5));
element.addEventListener("keydown", (event) => {
  if (!event.target.closest(".stage")) return;
  const step = 0.1;
  const actions = {
    "+": () => zoom(1.5),
    "=": () => zoom(1.5),
    "-": () => zoom(1 / 1.5),
    0: reset,
    ArrowLeft: () => move(step, 0),
    ArrowRight: () => move(-step, 0),
    ArrowUp: () => move(0, step),
    ArrowDown: () => move(0, -step),
  };
  const action = actions[event.key];
  if (!action || (event.key.startsWith("Arrow") && view.zoom === 1)) return;
  event.preventDefault();
  action();
});
element.addEventListener(
  "wheel",
  (event) => {
    if (!event.ctrlKey || !event.target.closest(".stage")) return; // without Ctrl, the wheel scrolls the page
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2);
  },
  { passive: false },
);
element.addEventListener("pointermove", (event) => {
  const stage = event.target.closest(".stage");
  if (!stage || view.zoom === 1 || !(event.buttons & 1)) return;
  const { width, height } = stage.querySelector(".layers").getBoundingClientRect();
  move((event.movementX / width) * view.zoom, (event.movementY / height) * view.zoom);
});
watch("value", () => {
  if (props.value?.xray === xray) return;
  xray = props.value?.xray;
  reset();
});
show();
