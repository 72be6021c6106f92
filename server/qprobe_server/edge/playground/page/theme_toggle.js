// The switch between light and dark. theme.js sets what was chosen before, ahead of the first paint.

const STORED = "qprobe-theme";

export function connectTheme(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => {
    button.textContent = isDark() ? "Light theme" : "Dark theme";
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    // Back at what the system says, the page follows it again.
    if (isDark() === system.matches) {
      delete root.dataset.theme;
      localStorage.removeItem(STORED);
    } else {
      localStorage.setItem(STORED, root.dataset.theme);
    }
    label();
  });
  system.addEventListener("change", label);
  label();
}
