package main

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/test/fleet/simulation"
)

// The picture's two panels, one above the other, in the units of its viewBox. They share the axis of time.
const (
	left, right           = 70.0, 760.0
	sharesTop, sharesEnd  = 50.0, 270.0
	callsTop, callsEnd    = 330.0, 550.0
	pictureMinutes        = 24
	leastCalls, mostCalls = 1.0, 100_000.0 // a second; the axis is logarithmic
	binSeconds            = 5              // calls are averaged over so many
)

// curve is one run in both panels.
type curve struct {
	*scenario
	label  string
	colour string
	dashes string
}

// picture is docs/fleet.svg: how many images have been pulled, and how many calls that took, over time.
func (s *scenarios) picture() string {
	const official, agents, whole, dashed = "#c2410c", "#1d4ed8", "none", "6 4"
	curves := []curve{
		{s.four[0], "official, four regions", official, whole},
		{s.four[2], "agents, four regions", agents, whole},
		{s.one[0], "official, one region", official, dashed},
		{s.one[1], "agents, one region", agents, dashed},
	}
	var b strings.Builder
	add := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	text := func(x, y float64, anchor, format string, args ...any) {
		add(`    <text x="%.0f" y="%.0f" text-anchor="%s">%s</text>`, x, y, anchor, fmt.Sprintf(format, args...))
	}
	add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 600" font-family="system-ui, sans-serif" font-size="13" role="img" aria-labelledby="title">`)
	add(`  <title id="title">How many images of a fleet that starts at once have been pulled, and how many calls a second that takes, with the official provider and with agents</title>`)
	add(`  <rect width="960" height="600" rx="8" fill="#fff"/>`)
	add(`  <g stroke="#ddd">`)
	for minute := 0; minute <= pictureMinutes; minute += 4 {
		x := xOf(time.Duration(minute) * time.Minute)
		add(`    <path d="M%.1f %.0fV%.0fM%.1f %.0fV%.0f"/>`, x, sharesTop, sharesEnd, x, callsTop, callsEnd)
	}
	for share := 0.0; share <= 1; share += 0.25 {
		add(`    <path d="M%.0f %.1fH%.0f"/>`, left, yOfShare(share), right)
	}
	for calls := leastCalls; calls <= mostCalls; calls *= 10 {
		add(`    <path d="M%.0f %.1fH%.0f"/>`, left, yOfCalls(calls), right)
	}
	add(`  </g>`)
	add(`  <g fill="#222">`)
	text(left, sharesTop-16, "start", "images that have been pulled")
	text(left, callsTop-16, "start", "calls a second, of which ECR grants 20 for each region")
	for share := 0.0; share <= 1; share += 0.25 {
		text(left-8, yOfShare(share)+4, "end", "%.0f %%", 100*share)
	}
	for calls := leastCalls; calls <= mostCalls; calls *= 10 {
		text(left-8, yOfCalls(calls)+4, "end", "%s", count(int(calls)))
	}
	for minute := 0; minute <= pictureMinutes; minute += 4 {
		x := xOf(time.Duration(minute) * time.Minute)
		text(x, sharesEnd+18, "middle", "%d", minute)
		text(x, callsEnd+18, "middle", "%d", minute)
	}
	text((left+right)/2, callsEnd+38, "middle", "minutes after the start")
	for i, c := range curves {
		text(right+58, sharesTop+14+24*float64(i), "start", "%s", c.label)
	}
	add(`  </g>`)
	for i, c := range curves {
		y := sharesTop + 10 + 24*float64(i)
		add(`  <g fill="none" stroke="%s" stroke-width="2" stroke-dasharray="%s" stroke-linejoin="round">`, c.colour, c.dashes)
		add(`    <path d="M%.0f %.0fh36"/>`, right+14, y)
		add(`    <path d="%s"/>`, shares(c.pulled))
		add(`    <path d="%s"/>`, calls(c.seconds))
		add(`  </g>`)
	}
	add(`</svg>`)
	return b.String()
}

func xOf(t time.Duration) float64 { return left + t.Minutes()/pictureMinutes*(right-left) }

func yOfShare(share float64) float64 { return sharesEnd - share*(sharesEnd-sharesTop) }

func yOfCalls(calls float64) float64 {
	return callsEnd - math.Log10(max(calls, leastCalls)/leastCalls)/math.Log10(mostCalls/leastCalls)*(callsEnd-callsTop)
}

// shares is the path of the share that is served, every five seconds.
func shares(sorted []time.Duration) string {
	var path strings.Builder
	served := 0
	for t := time.Duration(0); t <= pictureMinutes*time.Minute; t += binSeconds * time.Second {
		for served < len(sorted) && sorted[served] <= t {
			served++
		}
		point(&path, xOf(t), yOfShare(float64(served)/float64(max(len(sorted), 1))))
		if served == len(sorted) {
			break
		}
	}
	return path.String()
}

// calls is the path of the calls a second, until there are none.
func calls(seconds []simulation.Second) string {
	var path strings.Builder
	for i := 0; i+binSeconds <= min(len(seconds), pictureMinutes*60); i += binSeconds {
		sum := 0
		for _, s := range seconds[i : i+binSeconds] {
			sum += s.Calls()
		}
		point(&path, xOf(time.Duration(i)*time.Second+binSeconds*time.Second/2), yOfCalls(float64(sum)/binSeconds))
	}
	return path.String()
}

func point(path *strings.Builder, x, y float64) {
	command := "L"
	if path.Len() == 0 {
		command = "M"
	}
	fmt.Fprintf(path, "%s%.1f %.1f", command, x, y)
}
