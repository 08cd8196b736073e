// Numbers as workers/observe/format.py and job_words.py write them.
const pad = (n) => String(n).padStart(2, "0");
const digits = (n) => (n >= 9.95 ? n.toFixed(0) : String(Number(n.toPrecision(2))));
export const whole = new Intl.NumberFormat("en");
const cents = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });

export function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds > 0 && seconds < 0.9995) return `${digits(seconds * 1000)} ms`;
  if (seconds < 59.5) return `${digits(seconds)} s`;
  const rounded = Math.round(seconds);
  if (rounded < 3600) return `${Math.floor(rounded / 60)}m ${pad(rounded % 60)}s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)}h ${pad(minutes % 60)}m`;
  const hours = Math.round(seconds / 3600);
  return `${whole.format(Math.floor(hours / 24))}d ${pad(hours % 24)}h`;
}

export function left(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function rate(perSecond) {
  if (!perSecond) return "–";
  if (perSecond < 0.1) return `${Number(perSecond.toPrecision(1))}/s`;
  return perSecond >= 100 ? `${whole.format(Math.round(perSecond))}/s` : `${perSecond.toFixed(1)}/s`;
}

export function money(usd) {
  if (usd == null) return "unknown";
  return usd === 0 ? "$0" : usd < 1 ? `$${Number(usd.toPrecision(3))}` : `$${cents.format(usd)}`;
}

export const percent = (share) => (share == null ? "–" : `${Math.round(share * 100)}%`);
