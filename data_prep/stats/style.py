"""The page's style sheet: light or dark as the reader's machine is, one column on a phone."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfbf9; --card: #ffffff; --ink: #1c2024; --muted: #5f666f; --rule: #e2e2dc;
  --left: #0b6aa8; --lost: #d98e6a; --good: #1f8a5f; --track: #ecece6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1b1f23; --ink: #e6e8ea; --muted: #98a1ab; --rule: #2e343a;
    --left: #63b3ea; --lost: #b9694a; --good: #5fcf9f; --track: #23282d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 1160px; padding: 40px 24px 72px;
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1, h2 { font-family: Charter, "Iowan Old Style", Georgia, "Times New Roman", serif; }
h1 { margin: 0; font-size: 38px; line-height: 1.1; font-weight: 600; overflow-wrap: anywhere; }
h2 { margin: 56px 0 14px; font-size: 24px; line-height: 1.2; font-weight: 600; }
h3 { margin: 0; font-size: 15px; line-height: 1.35; font-weight: 600; }
p { margin: 8px 0; max-width: 72ch; }
.lead, .note { color: var(--muted); }
.note { font-size: 14px; }
.alert { margin-top: 18px; padding: 8px 14px; border-left: 4px solid var(--lost); }
.alert { background: var(--card); overflow-wrap: anywhere; }
.alert p { margin: 2px 0; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px 56px; margin: 28px 0 0; }
.tile b { display: block; font: 600 40px/1.1 Charter, Georgia, serif; }
.tile span { display: block; margin-top: 4px; color: var(--muted); font-size: 14px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
.pair { gap: 0 64px; }
.pair > section { min-width: 0; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: 5px 0 5px 16px; border-bottom: 1px solid var(--rule); text-align: right; }
th:first-child { padding-left: 0; text-align: left; font-weight: 400; overflow-wrap: anywhere; }
thead th { color: var(--muted); font-size: 14px; font-weight: 400; }
td { width: 1%; font-variant-numeric: tabular-nums lining-nums; white-space: nowrap; }
td:last-child { color: var(--muted); }
tr.whole th, tr.whole td { font-weight: 600; }
tr.lost th { padding-left: 18px; }
tr.group th { color: var(--muted); font-size: 14px; }
tbody + tbody tr.group th { padding-top: 18px; }
.bar { width: 46%; }
.bar i { display: block; height: 12px; min-width: 1px; border-radius: 2px; }
i.left { background: var(--left); }
i.lost { background: var(--lost); }
i.good { background: var(--good); }
.hosts .bar { width: 30%; }
.charts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr));
  gap: 20px; margin-top: 14px;
}
.charts figure {
  padding: 14px 14px 10px; background: var(--card);
  border: 1px solid var(--rule); border-radius: 8px;
}
figure { margin: 0; }
.charts p { margin: 3px 0 0; color: var(--muted); font-size: 13px; }
svg { display: block; width: 100%; height: auto; margin-top: 8px; font-family: inherit; }
svg rect { fill: var(--left); }
svg line { stroke: var(--muted); }
svg text { fill: var(--muted); font-size: 11px; }
.sheet {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 168px), 1fr));
  gap: 24px 20px; margin-top: 18px;
}
.sheet figure { min-width: 0; font-size: 14px; line-height: 1.4; overflow-wrap: anywhere; }
.sheet img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.sheet img.small { width: 96px; image-rendering: pixelated; }
.sheet p { margin: 6px 0 0; }
.sheet .note { font-size: 13px; }
.sheet small { color: var(--muted); font-size: 12px; }
@media (max-width: 560px) {
  body { padding: 24px 16px 56px; }
  h1 { font-size: 30px; }
  h2 { margin-top: 44px; }
  .tiles { gap: 16px 32px; }
  .tile b { font-size: 32px; }
  th, td { padding-left: 10px; font-size: 14px; }
  .bar { width: 18%; }
  .hosts .bar { width: 16%; }
  .sheet { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
"""
