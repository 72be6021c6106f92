// Copies text, and says so on the button that asked for it.

import { byId } from "./elements.js";

const SHOWN_MS = 1600;

export async function copy(button, text, say) {
  const label = button.dataset.label ?? button.textContent;
  button.dataset.label = label;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without HTTPS there is no clipboard at all, and a browser may refuse it.
    byId("snippet-text").value = text;
    byId("snippet").showModal();
    byId("snippet-text").select();
    return;
  }
  button.textContent = "Copied";
  say(`${label}: copied`);
  setTimeout(() => {
    button.textContent = label;
  }, SHOWN_MS);
}
