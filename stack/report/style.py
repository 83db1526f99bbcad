"""The report's style sheet: one column on a phone, three charts abreast on a laptop."""

from stack.report.canvas import COLOURS, INK, MUTED

_DARK = ("#63b3ea", "#f0935f", "#5fcf9f", "#cf95de", "#dcb84a", "#a9b4c0")


def _series(colours: tuple[str, ...]) -> str:
    return " ".join(f"--series-{i}: {colour};" for i, colour in enumerate(colours, 1))


_VARIABLES = f"""
:root {{
  color-scheme: light dark;
  --paper: #fbfbf9; --card: #ffffff; --ink: {INK}; --muted: {MUTED}; --rule: #e2e2dc;
  {_series(COLOURS)}
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --paper: #14171a; --card: #1b1f23; --ink: #e6e8ea; --muted: #98a1ab; --rule: #2e343a;
    {_series(_DARK)}
  }}
}}"""

CSS = (
    f"{_VARIABLES}\n"
    + """\
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 1160px; padding: 40px 24px 72px;
  background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1, h2 { font-family: Charter, "Iowan Old Style", Georgia, "Times New Roman", serif; }
h1 { margin: 0; font-size: 38px; line-height: 1.1; font-weight: 600; }
h2 { margin: 56px 0 14px; font-size: 24px; line-height: 1.2; font-weight: 600; }
h3 { margin: 0; font-size: 15px; line-height: 1.35; font-weight: 600; }
p { margin: 8px 0; max-width: 72ch; }
.lead { margin-top: 10px; color: var(--muted); }
.reading { margin-top: 28px; }
.note { color: var(--muted); font-size: 14px; }
.note + h3 { margin-top: 28px; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px 56px; margin: 32px 0 0; }
.tile b { display: block; font: 600 40px/1.1 Charter, Georgia, serif; }
.tile span { display: block; margin-top: 4px; color: var(--muted); font-size: 14px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); }
.pair { gap: 0 64px; }
.pair > section { min-width: 0; }
table { width: 100%; border-collapse: collapse; overflow-wrap: normal; }
th, td { padding: 7px 0 7px 20px; border-bottom: 1px solid var(--rule); text-align: right; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
thead th { color: var(--muted); font-size: 14px; font-weight: 400; }
tbody th { font-weight: 400; }
td { font-variant-numeric: tabular-nums lining-nums; white-space: nowrap; }
td.best { font-weight: 650; }
tbody + tbody th:only-child { padding-top: 18px; color: var(--muted); font-size: 14px; }
td .interval { display: block; color: var(--muted); font-size: 12.5px; font-weight: 400; }
td .few { text-decoration: underline dotted; text-underline-offset: 3px; }
tr.own th, tr.own td { font-weight: 650; }
.wide { overflow-x: auto; }
.wide th:first-child { min-width: 150px; overflow-wrap: anywhere; }
.wide .key { margin: 0; min-width: 96px; justify-content: flex-end; overflow-wrap: anywhere; }
.runs .key { font-size: 15px; margin-right: 22px; }
h3.published { margin: 28px 0 4px; }
.alerts { margin-top: 28px; padding: 2px 18px 8px; border-left: 4px solid var(--series-2); }
.alerts { background: var(--card); }
.alerts h2 { margin: 12px 0 6px; font-size: 19px; }
.alerts ul { margin: 0; padding-left: 18px; }
.grids .scatter { overflow-x: auto; }
.grids .scatter img { width: auto; height: 220px; max-width: none; }
.grids h3 { margin: 22px 0 8px; }
details { margin-top: 12px; }
details + h3 { margin-top: 28px; }
details .wide { padding: 0 14px 10px; }
th small { color: var(--muted); font-size: 13px; white-space: nowrap; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 16px 28px; }
dl, dd { margin: 0; }
dt { color: var(--muted); font-size: 14px; }
dd { font-variant-numeric: tabular-nums lining-nums; }
.charts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr));
  gap: 20px; margin-top: 14px;
}
figure { margin: 0; }
.charts figure {
  display: flex; flex-direction: column;
  padding: 14px 14px 10px; background: var(--card);
  border: 1px solid var(--rule); border-radius: 8px;
}
.charts p { margin: 3px 0 0; color: var(--muted); font-size: 13px; line-height: 1.4; }
.key { display: inline-flex; align-items: center; gap: 6px; margin-right: 14px; font-size: 13px; }
.key i { flex: none; width: 16px; height: 3px; border-radius: 2px; }
svg { display: block; width: 100%; height: auto; margin-top: 8px; font-family: inherit; }
.grid img, .scatter img {
  display: block; max-width: 100%; height: auto; border-radius: 4px; background: #ffffff;
}
.grid img { image-rendering: pixelated; }
.grid figcaption { margin-top: 8px; color: var(--muted); font-size: 14px; max-width: 90ch; }
.progress { display: grid; gap: 18px; margin-top: 20px; }
details { border: 1px solid var(--rule); border-radius: 8px; background: var(--card); }
summary { padding: 10px 14px; cursor: pointer; }
pre {
  margin: 0; padding: 4px 14px 14px; overflow-x: auto;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
@media (max-width: 560px) {
  body { padding: 24px 16px 56px; }
  h1 { font-size: 30px; }
  h2 { margin-top: 44px; }
  .tiles { gap: 16px 32px; }
  .tile b { font-size: 32px; }
  th, td { padding-left: 10px; }
  .wide th:first-child { min-width: 104px; }
  th small { white-space: normal; }
  td .interval { font-size: 11px; }
  .scatter { overflow-x: auto; }
  .scatter img { max-width: none; width: 720px; }
  .grids .scatter img { width: auto; height: 180px; }
  dl { grid-template-columns: 1fr 1fr; gap: 14px 16px; }
}
"""
)
