// The theme chosen on an earlier visit, set before the first paint; without a choice the system's preference holds.
try {
  const theme = localStorage.getItem("alhena.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is blocked: the system's preference holds.
}
