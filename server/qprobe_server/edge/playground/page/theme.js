// Not a module: it runs before the first paint, so that a page in the other theme never flashes up.
{
  const stored = localStorage.getItem("qprobe-theme");
  if (stored === "light" || stored === "dark") document.documentElement.dataset.theme = stored;
}
