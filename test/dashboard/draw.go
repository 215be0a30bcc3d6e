package main

import (
	"bytes"
	"context"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
	"time"
)

// Sizes in pixels; Grafana's grid has 24 columns.
const (
	column, row = 50, 30
	gap         = 8
	margin      = 14
	header      = 40
	textWidth   = 6.3 // of a letter at 11 px, about
)

// palette are Grafana's first colours, dark enough for white.
var palette = []string{"#3d7a33", "#b8860b", "#1f78c1", "#d44a2a", "#8f3bb8", "#0a7a8a", "#c15c17", "#705da0", "#58140c", "#447ebc"}

// canvas is an SVG that is being written.
type canvas struct{ bytes.Buffer }

func (c *canvas) printf(format string, args ...any) { fmt.Fprintf(&c.Buffer, format+"\n", args...) }

func (c *canvas) text(x, y float64, attributes, text string) {
	c.printf(`<text x="%.1f" y="%.1f" %s>%s</text>`, x, y, attributes, html.EscapeString(text))
}

// draw draws the panels with what Prometheus knows of that time.
func draw(ctx context.Context, board dashboard, p *prometheus, from, to time.Time) ([]byte, error) {
	bottom := 0
	for _, panel := range board.Panels {
		bottom = max(bottom, panel.GridPos.Y+panel.GridPos.H)
	}
	width, height := 24*column+2*margin, header+bottom*row+2*margin
	c := &canvas{}
	c.printf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="11" fill="#222" role="img" aria-labelledby="title">`, width, height)
	c.printf(`<title id="title">%s: the panels of examples/grafana/dashboard.json under a synthetic load, drawn by test/dashboard</title>`, html.EscapeString(board.Title))
	c.printf(`<rect width="%d" height="%d" rx="8" fill="#f2f3f5"/>`, width, height)
	c.text(margin+4, 33, `font-size="18" font-weight="600"`, board.Title)
	for _, panel := range board.Panels {
		at := panel.GridPos
		x, y := float64(margin+at.X*column), float64(header+margin+at.Y*row)
		w, h := float64(at.W*column-gap), float64(at.H*row-gap)
		c.printf(`<rect x="%.0f" y="%.0f" width="%.0f" height="%.0f" rx="4" fill="#fff" stroke="#d5d8dc"/>`, x, y, w, h)
		c.text(x+10, y+19, `font-size="13" font-weight="600"`, panel.Title)
		var err error
		if panel.Type == "stat" {
			err = c.stat(ctx, panel, p, to, x, y, w, h)
		} else {
			err = c.lines(ctx, panel, p, from, to, x, y, w, h)
		}
		if err != nil {
			return nil, fmt.Errorf("panel %q: %w", panel.Title, err)
		}
	}
	c.printf("</svg>")
	return c.Bytes(), nil
}

func (c *canvas) stat(ctx context.Context, panel panel, p *prometheus, at time.Time, x, y, w, h float64) error {
	value, ok, err := p.now(ctx, panel.Targets[0].Expr, at)
	if err != nil {
		return err
	}
	text, colour := "none", "#222"
	if ok {
		text = withUnit(value, panel.FieldConfig.Defaults.Unit)
		for _, step := range panel.FieldConfig.Defaults.Thresholds.Steps {
			if known := map[string]string{"green": "#2e7d32", "red": "#c4162a"}[step.Color]; known != "" && (step.Value == nil || value >= *step.Value) {
				colour = known
			}
		}
	}
	c.text(x+w/2, y+h/2+24, fmt.Sprintf(`font-size="28" font-weight="600" text-anchor="middle" fill=%q`, colour), text)
	return nil
}

func (c *canvas) lines(ctx context.Context, panel panel, p *prometheus, from, to time.Time, x, y, w, h float64) error {
	var all []series
	for _, target := range panel.Targets {
		found, err := p.over(ctx, target.Expr, target.LegendFormat, from, to)
		if err != nil {
			return err
		}
		all = append(all, found...)
	}
	if len(all) == 0 {
		c.text(x+w/2, y+h/2, `text-anchor="middle" fill="#666"`, "no data")
		return nil
	}
	slices.SortStableFunc(all, func(a, b series) int { return strings.Compare(a.name, b.name) })
	legend := legendOf(all, w-20)
	unit := panel.FieldConfig.Defaults.Unit
	stacked := panel.FieldConfig.Defaults.Custom.Stacking.Mode == "normal"
	if stacked {
		all = stack(all)
	}
	top := 0.
	for _, s := range all {
		for _, v := range s.values {
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				top = max(top, v)
			}
		}
	}
	tick := niceStep(top/4, unit)
	top = max(math.Ceil(top/tick-1e-9), 1) * tick
	if m := panel.FieldConfig.Defaults.Max; m != nil {
		top = *m
		tick = top / 4
	}

	left, right := x+62, x+w-14
	upper, lower := y+34, y+h-24-float64(len(legend))*16
	atX := func(t float64) float64 {
		return left + (t-float64(from.UnixMilli())/1000)/to.Sub(from).Seconds()*(right-left)
	}
	atY := func(v float64) float64 { return lower - v/top*(lower-upper) }
	for v := 0.; v <= top+tick/2; v += tick {
		c.printf(`<path d="M%.1f %.1fH%.1f" stroke="#e3e5e8"/>`, left, atY(v), right)
		c.text(left-6, atY(v)+4, `text-anchor="end" fill="#555"`, withUnit(v, unit))
	}
	every := 30 * time.Second
	if w < 450 {
		every = time.Minute
	}
	for t := time.Duration(0); t <= to.Sub(from); t += every {
		c.text(atX(float64(from.Add(t).UnixMilli())/1000), lower+15, `text-anchor="middle" fill="#555"`, fmt.Sprintf("%d:%02d", int(t.Minutes()), int(t.Seconds())%60))
	}
	for i := range all {
		i := len(all) - 1 - i // the lower ones of a stack lie above the higher ones
		c.line(all[i], colourOf(i), stacked, atX, atY, lower)
	}
	n := 0
	for r, names := range legend {
		at := x + 12
		for _, name := range names {
			base := y + h - 10 - float64(len(legend)-1-r)*16
			c.printf(`<rect x="%.1f" y="%.1f" width="12" height="4" rx="2" fill="%s"/>`, at, base-6, colourOf(n))
			c.text(at+17, base, "", name)
			at += legendWidth(name)
			n++
		}
	}
	return nil
}

func colourOf(i int) string { return palette[i%len(palette)] }

// line draws one series, with holes where it has no values.
func (c *canvas) line(s series, colour string, filled bool, atX, atY func(float64) float64, lower float64) {
	var run []string
	var first, last float64
	flush := func() {
		if len(run) > 0 {
			path := "M" + strings.Join(run, "L")
			if filled {
				c.printf(`<path d="%sL%.1f %.1fL%.1f %.1fZ" fill="%s"/>`, path, last, lower, first, lower, colour)
			} else {
				c.printf(`<path d="%s" fill="none" stroke="%s" stroke-width="1.6" stroke-linejoin="round"/>`, path, colour)
			}
		}
		run = nil
	}
	for i, v := range s.values {
		if math.IsNaN(v) || math.IsInf(v, 0) || i > 0 && s.times[i]-s.times[i-1] > 1.5*step.Seconds() {
			flush()
		}
		if math.IsNaN(v) || math.IsInf(v, 0) {
			continue
		}
		px := atX(s.times[i])
		if len(run) == 0 {
			first = px
		}
		last = px
		run = append(run, fmt.Sprintf("%.1f %.1f", px, atY(v)))
	}
	flush()
}

// stack adds each series to those before it.
func stack(all []series) []series {
	sum := map[float64]float64{}
	for _, s := range all {
		for _, t := range s.times {
			sum[t] = 0
		}
	}
	times := make([]float64, 0, len(sum))
	for t := range sum {
		times = append(times, t)
	}
	slices.Sort(times)
	var stacked []series
	for _, s := range all {
		for i, t := range s.times {
			if !math.IsNaN(s.values[i]) {
				sum[t] += s.values[i]
			}
		}
		on := series{name: s.name, times: times}
		for _, t := range times {
			on.values = append(on.values, sum[t])
		}
		stacked = append(stacked, on)
	}
	return stacked
}

func legendWidth(name string) float64 { return 17 + textWidth*float64(len(name)) + 14 }

// legendOf puts the names into as many rows as they need.
func legendOf(all []series, width float64) [][]string {
	rows, used := [][]string{nil}, 0.
	for _, s := range all {
		need := legendWidth(s.name)
		if used+need > width && used > 0 {
			rows, used = append(rows, nil), 0
		}
		rows[len(rows)-1] = append(rows[len(rows)-1], s.name)
		used += need
	}
	return rows
}

// niceStep is the next of 1, 2 and 5 times a power of ten, or of two for bytes.
func niceStep(at float64, unit string) float64 {
	if at <= 0 {
		return 1
	}
	if unit == "bytes" {
		return math.Pow(2, math.Ceil(math.Log2(at)))
	}
	power := math.Pow(10, math.Floor(math.Log10(at)))
	for _, of := range []float64{1, 2, 5} {
		if of*power >= at {
			return of * power
		}
	}
	return 10 * power
}

// withUnit writes a value in one of Grafana's units.
func withUnit(v float64, unit string) string {
	switch unit {
	case "percentunit":
		return number(v*100) + " %"
	case "reqps":
		return number(v) + " req/s"
	case "s":
		switch {
		case v == 0:
			return "0 s"
		case v < 1e-3:
			return number(v*1e6) + " µs"
		case v < 1:
			return number(v*1e3) + " ms"
		case v < 120:
			return number(v) + " s"
		default:
			return number(v/60) + " min"
		}
	case "bytes":
		switch {
		case v >= 1<<20:
			return number(v/(1<<20)) + " MiB"
		case v >= 1<<10:
			return number(v/(1<<10)) + " KiB"
		default:
			return number(v) + " B"
		}
	default:
		return number(v)
	}
}

// number has three digits at most, or as many as it has before the point.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || a == math.Trunc(a):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0")
	default:
		return strings.TrimRight(strings.TrimRight(fmt.Sprintf("%.2f", v), "0"), ".")
	}
}
