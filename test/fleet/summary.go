package main

import (
	"slices"
	"time"

	"github.com/credential-broker/credential-broker/test/fleet/simulation"
)

// summary is what the tables and the picture show of a run. Times are since a pull was wanted, or, where the fleet started in an outage, since its end.
type summary struct {
	total   simulation.Second
	seconds []simulation.Second // of the first hour

	credential, pulled []time.Duration // of the start's pulls, sorted
	unauthorized       int             // pulls that the start made without credentials

	busiest        int // calls in the busiest second of the start
	busiestAfter   int // calls in the busiest minute after the first hour
	throttledAfter int // calls throttled after the first hour
	inOutage       int // calls in the outage
	heldUp         int // pulls wanted in the day's outage that first went without credentials
	rollout        []time.Duration
}

func summarize(c simulation.Config, r simulation.Result) summary {
	s := summary{total: r.Total}
	start := c.Nodes * c.Images
	for i, p := range r.Pulls {
		switch {
		case i < start:
			from := p.Wanted
			if len(c.Outages) > 0 && c.Outages[0].From == 0 {
				from = c.Outages[0].Until
			}
			s.credential = append(s.credential, p.Credential-from)
			s.pulled = append(s.pulled, p.Pulled-from)
			s.unauthorized += p.Failures
		case p.Wanted >= dayOutage.From && p.Wanted < dayOutage.Until:
			if p.Failures > 0 {
				s.heldUp++
			}
		case p.Wanted >= dayRollout && p.Wanted < dayRollout+time.Minute:
			s.rollout = append(s.rollout, p.Pulled-p.Wanted)
		}
	}
	for _, sorted := range [][]time.Duration{s.credential, s.pulled, s.rollout} {
		slices.Sort(sorted)
	}
	var minute int
	for i, second := range r.Seconds {
		at := time.Duration(i) * time.Second
		s.inOutage += int(second.Down)
		if at < startEnd {
			s.busiest = max(s.busiest, second.Calls())
			s.seconds = append(s.seconds, second)
			continue
		}
		s.throttledAfter += int(second.Throttled)
		if i%60 == 0 {
			minute = 0
		}
		minute += second.Calls()
		s.busiestAfter = max(s.busiestAfter, minute)
	}
	return s
}

// quantile is the time within which that share of the pulls was served.
func quantile(sorted []time.Duration, share float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}
