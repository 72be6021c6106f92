"""From what a request asks to the candidates that answer it. No HTTP, no engine."""
